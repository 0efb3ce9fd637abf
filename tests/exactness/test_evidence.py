"""Evidence: which models get a trial and when; models that would give wrong output do not draft."""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from hf_specplug import attach, detach
from hf_specplug.exactness import evidence, trial
from hf_specplug.hf import support
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE, CallPlan
from tests.helpers.oracle import Replay
from tests.helpers.runs import chosen, new_tokens, plain, plugged
from tests.helpers.zoo import FAMILIES, make, prompt

TREES = [name for name, family in FAMILIES.items() if family.mode == TREE]
SETTINGS: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}


def fresh(name: str = "llama", kind: type | None = None) -> Any:
    """A new model of a family, of class `kind` if given."""
    torch.manual_seed(0)
    model = FAMILIES[name].build().eval()
    model.generation_config.eos_token_id = None
    if kind is not None:
        model.__class__ = kind
    return model


def assert_exact(model: Any, inputs: Any = None, **settings: Any) -> Any:
    """Check that right and wrong drafts do not change the output; returns the last plug."""
    inputs = prompt(model) if inputs is None else inputs
    every = {**SETTINGS, **settings}
    expected, _ = plain(model, inputs, **every)
    for drafter in (
        Replay(new_tokens(expected, 40), rank=1),
        Replay(new_tokens(expected, 40), wrong=lambda position: position % 3 == 1),
    ):
        output, _, plug = plugged(model, inputs, drafter, **every)
        assert output.tolist() == expected.tolist()
    return plug


@pytest.mark.parametrize("name", TREES)
def test_a_trial_agrees_with_what_is_proven(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PROVEN", frozenset())
    model = fresh(name)
    if model.get_experts_implementation():
        model.set_experts_implementation("eager")
    state, numbers, choices = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert chosen(model, prompt(model)).mode == TREE
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers[1])
    assert random.getstate() == choices


@pytest.mark.parametrize("name", ["falcon-alibi", "gpt-neo", "mpt", "bloom"])
def test_a_trial_finds_what_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "of_model", lambda model: CallPlan(TREE))
    monkeypatch.setattr(evidence, "PROVEN", frozenset())
    found = chosen(fresh(name), prompt(make(name)))
    assert found.mode == CHAIN
    assert "trial" in found.reason


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_formats_are_not_taken_for_mistakes(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "PROVEN", frozenset())
    model = fresh(name).to(dtype)
    assert chosen(model, prompt(model)).mode in (TREE, CHAIN)


def test_a_trial_is_made_once_for_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PROVEN", frozenset())
    tried: list[bool] = []
    run_trial = trial.run_trial
    monkeypatch.setattr(
        trial, "run_trial", lambda *arguments: tried.append(True) or run_trial(*arguments)
    )
    model = fresh()
    for _ in range(3):  # each with another plug
        assert_exact(model)
    assert len(tried) == 1
    inputs = prompt(model)
    inputs["attention_mask"][:, :3] = 0
    for _ in range(2):
        assert_exact(model, inputs)
    assert len(tried) == 2
    model.model.layers[0].register_forward_hook(lambda *arguments: None)
    assert_exact(model)
    assert len(tried) == 3
    twin = copy.deepcopy(model)
    assert_exact(twin)
    assert len(tried) == 4


def test_what_is_proven_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("no trial was needed")

    model = fresh()
    assert evidence.is_stock(model)
    monkeypatch.setattr(trial, "run_trial", never)
    plug = assert_exact(model)
    assert not plug.stats.fallbacks


class Shifted(tf.LlamaForCausalLM):  # type: ignore[misc]
    """A model whose positions begin at 7."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["position_ids"] = inputs["position_ids"] + 7
        return inputs


class Doubled(tf.LlamaForCausalLM):  # type: ignore[misc]
    """A model whose positions increase by two per token, which no gate by name could detect."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["position_ids"] = inputs["position_ids"] * 2
        return inputs


class Inverted(tf.LlamaForCausalLM):  # type: ignore[misc]
    """Takes masks in which 1 is padding; its input preparation inverts the mask of `generate`."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = 1 - inputs["attention_mask"]
        return inputs

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
        if attention_mask is not None:
            attention_mask = 1 - attention_mask.long()
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)


class OwnLayer(tf.cache_utils.DynamicLayer):  # type: ignore[misc]
    """A cache layer that keeps the tokens in reverse order."""

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        both = super().update(keys.flip(-2), values.flip(-2), *args, **kwargs)
        return tuple(states.flip(-2) for states in both)


class OwnCache(tf.LlamaForCausalLM):  # type: ignore[misc]
    """Makes its own kind of KV cache."""

    def _prepare_cache_for_generation(self, config: Any, model_kwargs: Any, *args: Any) -> None:
        layers = [OwnLayer() for _ in range(self.config.num_hidden_layers)]
        model_kwargs["past_key_values"] = tf.Cache(layers=layers)


class Forgetful(tf.LlamaForCausalLM):  # type: ignore[misc]
    """Uses only the last two tokens of a forward pass, and keeps no KV cache."""

    def forward(self, input_ids: Any = None, **rest: Any) -> Any:
        rest.update(past_key_values=None, position_ids=None, attention_mask=None, use_cache=False)
        outputs = super().forward(input_ids=input_ids[:, -2:], **rest)
        outputs.logits = outputs.logits[:, -1:].expand(1, input_ids.shape[1], -1)
        return outputs


@pytest.mark.parametrize("kind", [Shifted, Doubled, Inverted, OwnCache, Forgetful])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_model_of_the_users_own_is_never_silently_wrong(kind: type, padding: int) -> None:
    model = fresh(kind=kind)
    inputs = prompt(model)
    inputs["attention_mask"][:, :padding] = 0
    plug = assert_exact(model, inputs)
    if kind in (Doubled, OwnCache, Forgetful):
        assert plug.stats.fallbacks, "it says why it is not drafted as a tree"
    if kind is Shifted:
        assert not plug.stats.fallbacks, "what generate prepares was understood"


def test_preparation_that_was_replaced_on_the_instance() -> None:
    """PEFT's prompt learning does this for the duration of a call."""
    model = fresh()
    own = model.prepare_inputs_for_generation

    def odd(*args: Any, **kwargs: Any) -> Any:
        inputs = own(*args, **kwargs)
        inputs["position_ids"] = inputs["position_ids"] * 3
        return inputs

    assert not assert_exact(model).stats.fallbacks
    model.prepare_inputs_for_generation = odd
    assert assert_exact(model).stats.fallbacks
    del model.prepare_inputs_for_generation
    assert not assert_exact(model).stats.fallbacks


class Together(nn.Linear):
    """One scale for the activations of all tokens, as in dynamic per-tensor quantization."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max() / 127
        return super().forward((x / scale).round() * scale)


class Apart(nn.Linear):
    """One scale per token."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return super().forward((x / scale).round() * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_take_all_tokens_together(dtype: torch.dtype) -> None:
    model = fresh().to(dtype)
    for layer in model.model.layers:
        layer.mlp.down_proj.__class__ = Together
    found = chosen(model, prompt(model))
    assert found.mode == PLAIN
    assert "Together model.layers.0.mlp.down_proj" in found.reason
    if dtype is torch.float32:
        assert_exact(model)


def test_layers_with_a_scale_for_each_token() -> None:
    model = fresh()
    for layer in model.model.layers:
        layer.mlp.down_proj.__class__ = Apart
    assert_exact(model)
    assert "Apart" not in chosen(model, prompt(model)).reason


def test_layers_are_looked_at_again_when_they_changed() -> None:
    model = fresh()
    assert not assert_exact(model).stats.fallbacks
    layer = model.model.layers[1].mlp.down_proj
    layer.__class__ = Together
    assert assert_exact(model).stats.fallbacks
    layer.__class__ = nn.Linear
    assert not assert_exact(model).stats.fallbacks


class Switched(nn.Module):
    """An adapter that, while active, scales all tokens of a forward pass except the last."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.active = base, False
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if self.active:
            y = torch.cat([1.5 * y[:, :-1], y[:, -1:]], dim=1)
        return y


def test_adapters_that_are_switched_on() -> None:
    model = fresh()
    adapter = Switched(model.model.layers[0].mlp.up_proj)
    model.model.layers[0].mlp.up_proj = adapter
    plug = attach(model)
    for active, trees in ((False, True), (True, False), (False, True)):
        adapter.active = active
        expected, _ = plain(model, prompt(model), **SETTINGS)
        before = plug.stats.calls
        assert model.generate(**prompt(model), **SETTINGS).tolist() == expected.tolist()
        assert (plug.stats.calls > before) == trees
    detach(model)
    assert list(plug.stats.fallbacks.values()) == [1]


@pytest.mark.parametrize("name", ["gpt2", "opt", "t5"])
def test_dropout_in_train_mode(name: str) -> None:
    model = fresh(name).train()
    torch.manual_seed(5)
    expected, state = plain(model, prompt(model), 5, **SETTINGS)
    output, after, plug = plugged(model, prompt(model), ["context"], seed=5, **SETTINGS)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert any("train mode" in reason for reason in plug.stats.fallbacks)


def test_attention_dropout_in_train_mode() -> None:
    """This dropout is no module; the trial detects it."""
    model = fresh()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    assert not assert_exact(model).stats.fallbacks
    model.train()
    expected, state = plain(model, prompt(model), 5, **SETTINGS)
    output, after, plug = plugged(model, prompt(model), ["context"], seed=5, **SETTINGS)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert plug.stats.fallbacks


def test_train_mode_without_dropout_drafts() -> None:
    model = fresh().train()
    assert not assert_exact(model).stats.fallbacks


def test_a_method_that_was_replaced_in_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched-in kernels do this. The method here mixes each token with the others of its pass."""
    model = fresh()
    assert not assert_exact(model).stats.fallbacks
    kind = type(model.model.layers[0].mlp)
    own = kind.forward

    def mean(self: Any, x: torch.Tensor) -> torch.Tensor:
        return own(self, x) + x.mean(1, keepdim=True)

    monkeypatch.setattr(kind, "forward", mean)
    assert not evidence.is_stock(model)
    assert assert_exact(model).stats.fallbacks
    monkeypatch.undo()
    assert not assert_exact(model).stats.fallbacks


def test_gradient_checkpointing() -> None:
    model = fresh()
    model.gradient_checkpointing_enable()
    model.train()
    assert_exact(model)


class Random(tf.LlamaForCausalLM):  # type: ignore[misc]
    """Draws a random number in each forward pass, and does not use it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("threads", [1, 2])
def test_models_that_draw_random_numbers(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafting would leave another random state; with other threads, the result is not kept."""
    tried: list[bool] = []
    run_trial = trial.run_trial
    monkeypatch.setattr(
        trial, "run_trial", lambda *arguments: tried.append(True) or run_trial(*arguments)
    )
    monkeypatch.setattr(threading, "active_count", lambda: threads)
    model = fresh(kind=Random)
    expected, state = plain(model, prompt(model), 5, **SETTINGS)
    for _ in range(3):
        output, after, plug = plugged(model, prompt(model), ["context"], seed=5, **SETTINGS)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert "random numbers" in next(iter(plug.stats.fallbacks))
    assert len(tried) == (1 if threads == 1 else 3)


def test_inputs_that_come_one_by_one() -> None:
    ids = torch.ones(1, 3, dtype=torch.int64)
    features = {"input_features": (part for part in ())}
    call = Call(make("llama"), ids, tf.GenerationConfig(), features)
    found = evidence.shown(call, CallPlan(TREE))
    assert found.mode == PLAIN
