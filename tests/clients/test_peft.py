"""PEFT: every tuner, attached in either order, switched, disabled, merged, unloaded."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from hf_specplug import attach, detach
from tests.clients.same import GREEDY, NEW, assert_same, tiny
from tests.helpers.zoo import prompt

peft = pytest.importorskip("peft")

LINEARS = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
TOKENS = {"num_virtual_tokens": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {**LINEARS, "r": 4, "total_step": 10},
    "adaption_prompt": {"adapter_layers": 2, "adapter_len": 4},
    "boft": {**LINEARS, "boft_block_size": 4},
    "c3a": {**LINEARS, "block_size": 16},
    "cartridge": TOKENS,
    "cpt": {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1] * 4},
    "fourierft": {**LINEARS, "n_frequency": 20},
    "ia3": {**LINEARS, "feedforward_modules": ["down_proj"]},
    "ln_tuning": {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
    "miss": {**LINEARS, "r": 8},
    "multitask_prompt_tuning": TOKENS,
    "oft": {**LINEARS, "oft_block_size": 4},
    "p_tuning": {**TOKENS, "encoder_hidden_size": 16},
    "prefix_tuning": TOKENS,
    "prompt_tuning": TOKENS,
    "psoft": {**LINEARS, "r": 8},
    "road": {**LINEARS, "group_size": 16},
    "shadow": {"shadow_alpha": 0.5},
    "shira": {**LINEARS, "r": 4},
    "trainable_tokens": {"token_indices": list(range(3, 60))},
    "vblora": {**LINEARS, "r": 4, "vector_length": 16, "num_vectors": 8},
    "waveft": {**LINEARS, "n_frequency": 50},
}
"""What a tuner needs; others need the names of layers only."""

ROWS_DEPEND = {
    "cartridge": "prompt learning",
    "cpt": "prompt learning",
    "lily": "each row is adapted by an average over all rows of the forward pass",
    "multitask_prompt_tuning": "prompt learning",
    "p_tuning": "prompt learning",
    "prefix_tuning": "prompt learning",
    "prompt_tuning": "prompt learning",
    "shadow": "a key-value cache of its own, which is not rolled back",
}
"""Tuners that may run plainly, with a reason: trees through them are wrong, or not shown right."""

FROM_FILES = "xlora"  # mixes adapters that were saved before
TUNERS = sorted(str(kind.value).lower() for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)


def adapted(kind: str, model: Any = None, **settings: Any) -> Any:
    """A tiny model with an adapter of random weights."""
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind.upper())]
    given = {**SETTINGS.get(kind, LINEARS), **settings}
    model = tiny() if model is None else model
    return stirred(peft.get_peft_model(model, config(task_type="CAUSAL_LM", **given)))


def stirred(model: Any) -> Any:
    """Adapters start as no change at all: give them one."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and weight.is_floating_point():
                weight += 0.3 * torch.randn_like(weight)
    return model.eval()


def inputs_of(model: Any, kind: str = "") -> dict[str, Any]:
    tasks = {"task_ids": torch.tensor([0])} if kind in ("poly", "multitask_prompt_tuning") else {}
    return {**prompt(model.get_base_model()), **tasks}


@pytest.mark.parametrize("kind", [kind for kind in TUNERS if kind != FROM_FILES])
@pytest.mark.parametrize("target", ["adapted", "base"])
def test_every_tuner(kind: str, target: str) -> None:
    model = adapted(kind)
    inputs = inputs_of(model, kind)
    attached = model if target == "adapted" else model.get_base_model()
    outcome = assert_same(attached, lambda **settings: model.generate(**inputs, **settings))
    assert outcome.drafted or (kind in ROWS_DEPEND and outcome.reasons)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True}], ids=str)
def test_variants_of_lora(settings: dict[str, Any]) -> None:
    model = adapted("lora", **settings)
    inputs = inputs_of(model)
    assert assert_same(model, lambda **rest: model.generate(**inputs, **rest)).drafted


@pytest.mark.parametrize("invocation", ["in the prompt", "elsewhere"])
@pytest.mark.parametrize("target", ["adapted", "base"])
def test_activated_lora(invocation: str, target: str) -> None:
    """It adapts the last rows of a forward pass, as many as there are from its invocation on."""
    base = tiny()
    inputs = prompt(base)
    ids = inputs["input_ids"][0]
    tokens = ids[-5:-2].tolist() if invocation == "in the prompt" else [95, 94]
    model = adapted("lora", base, alora_invocation_tokens=tokens)
    attached = model if target == "adapted" else base
    outcome = assert_same(attached, lambda **settings: model.generate(**inputs, **settings))
    assert outcome.drafted or outcome.reasons


def test_an_invocation_in_a_later_call() -> None:
    """What was found of one call does not hold for the next, whose hooks are others."""
    base = tiny()
    inputs = prompt(base)
    tokens = inputs["input_ids"][0, -5:-2].tolist()
    other = prompt(base, seed=3)
    model = adapted("lora", base, alora_invocation_tokens=tokens)
    expected = [model.generate(**each, max_new_tokens=NEW, **GREEDY) for each in (other, inputs)]
    attach(model, nodes=12)
    for _ in range(2):
        found = [model.generate(**each, max_new_tokens=NEW, **GREEDY) for each in (other, inputs)]
        assert [each.tolist() for each in found] == [each.tolist() for each in expected]


def test_attached_before_the_adapter() -> None:
    base = tiny()
    inputs = prompt(base)
    plug = attach(base)
    model = adapted("lora", base)
    found = model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    assert plug.stats.calls == 1
    expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY, assistant=None)
    assert plug.stats.calls == 1
    assert found.tolist() == expected.tolist()


def test_adapters_come_and_go() -> None:
    """Switched, disabled, merged, unmerged and deleted between calls of one plug."""
    model = adapted("lora")
    inputs = inputs_of(model)
    model.add_adapter("second", peft.LoraConfig(task_type="CAUSAL_LM", r=2, **LINEARS))
    model.set_adapter("second")
    stirred(model)
    plug = attach(model)
    seen = []

    def compare() -> None:
        expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY, assistant=None)
        found = model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
        assert found.tolist() == expected.tolist()
        seen.append(tuple(found[0].tolist()))

    compare()
    model.set_adapter("default")
    compare()
    with model.disable_adapter():
        compare()
    model.merge_adapter()
    compare()
    model.unmerge_adapter()
    compare()
    model.delete_adapter("second")
    compare()
    assert len(set(seen)) == 3
    assert plug.stats.calls == 6
    assert not plug.stats.fallbacks


@pytest.mark.parametrize("how", ["merge_and_unload", "unload"])
def test_the_plug_stays_with_what_unloading_returns(how: str) -> None:
    model = adapted("lora")
    inputs = inputs_of(model)
    plug = attach(model)
    model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    bare = getattr(model, how)()
    found = bare.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    assert plug.stats.calls == 2
    detach(bare)
    assert found.tolist() == bare.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist()
    assert plug.stats.calls == 2


def test_attaching_to_either_is_attaching_to_both() -> None:
    model = adapted("lora")
    inputs = inputs_of(model)
    base = model.get_base_model()
    before = dict(vars(model)), dict(vars(base))
    first = attach(base)
    second = attach(model)
    model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    base.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    assert (first.stats.calls, second.stats.calls) == (0, 2)
    detach(model)
    assert (vars(model), vars(base)) == before


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how: str) -> None:
    model = adapted("lora")
    inputs = inputs_of(model)
    plug = attach(model)
    expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert twin.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist() == expected.tolist()
    assert plug.stats.calls == 1


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = adapted("lora")
    inputs = inputs_of(model)
    attach(model)
    expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny(), tmp_path).eval()
    assert loaded.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist() == expected.tolist()
    assert assert_same(loaded, lambda **settings: loaded.generate(**inputs, **settings)).drafted


def test_adapters_of_transformers_own() -> None:
    model = tiny()
    inputs = prompt(model)
    without = model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    model.add_adapter(peft.LoraConfig(r=4, **LINEARS))
    stirred(model)
    assert assert_same(model, lambda **settings: model.generate(**inputs, **settings)).drafted
    assert model.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist() != without.tolist()


def test_mixed_adapters_by_name() -> None:
    model = adapted("lora")
    inputs = inputs_of(model)
    for name in ("default", "__base__"):
        call = {**inputs, "adapter_names": [name]}
        outcome = assert_same(model, lambda call=call, **rest: model.generate(**call, **rest))
        assert outcome.drafted
