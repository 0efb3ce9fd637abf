"""`model.generate` of an attached model is looked into, copied and patched as the method it was."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, LogitsProcessor, LogitsProcessorList

from hf_specplug import attach, detach
from hf_specplug.verify import packed, packing_trial
from tests.clients.same import GREEDY, NEW, tiny
from tests.helpers.zoo import prompt


def test_it_looks_like_the_method() -> None:
    model = tiny()
    method = model.generate
    attach(model)
    for name in ("__name__", "__qualname__", "__doc__", "__func__", "__self__", "__wrapped__"):
        assert getattr(model.generate, name) == getattr(method, name), name
    assert inspect.signature(model.generate) == inspect.signature(method)
    assert inspect.getdoc(model.generate) == inspect.getdoc(method)
    assert not hasattr(model.generate, "nothing_of_that_name")


def test_with_gradients_as_is_done_with_the_method() -> None:
    model = tiny()
    attach(model)
    out = model.generate.__wrapped__(
        model, **prompt(model), max_new_tokens=3, return_dict_in_generate=True, output_logits=True
    )
    assert out.logits[0].requires_grad


def test_a_patcher_that_wraps_it_keeps_the_plug() -> None:
    """Unsloth's way: keep the old one as an attribute, bind a function with its docstring."""
    model = tiny()
    inputs = prompt(model)
    expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
    plug = attach(model)

    def fast_generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._old_generate(*args, **kwargs)

    if model.generate.__name__ != "fast_generate":
        model._old_generate = model.generate
        fast_generate.__doc__ = model._old_generate.__doc__
        model.generate = types.MethodType(fast_generate, model)
    assert model.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist() == expected.tolist()
    assert plug.stats.calls == 1
    detach(model)  # another's method is not ours to remove
    assert model.generate.__name__ == "fast_generate"


@pytest.mark.parametrize(
    "settings",
    [
        {"dola_layers": "high"},
        {"penalty_alpha": 0.6},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 2, "force_words_ids": [[5]]},
    ],
    ids=str,
)
def test_a_removed_mode_raises_what_it_raises_plainly(settings: dict[str, Any]) -> None:
    model = tiny()
    call = {**prompt(model), "max_new_tokens": 3, "do_sample": False, **settings}
    with pytest.raises(ValueError) as plainly:
        model.generate(**call)
    plug = attach(model)
    with pytest.raises(ValueError) as attached:
        model.generate(**call)
    assert str(attached.value) == str(plainly.value)
    assert len(plug.stats.fallbacks) == 1


class _At(LogitsProcessor):  # type: ignore[misc]
    """Does something in the middle of a call."""

    def __init__(self, act: Callable[[], None], tokens: int) -> None:
        self.act, self.tokens = act, tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.tokens -= 1
        if not self.tokens:
            self.act()
        return scores


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copied_while_weights_are_packed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "PACK_AFTER", 2)
    monkeypatch.setattr(packed, "COMPARE_AFTER", 2)
    monkeypatch.setattr(packing_trial, "WORTHWHILE", float("inf"))
    model = tiny()
    inputs = prompt(model)
    expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist()
    attach(model, nodes=4)
    copies = []

    def take() -> None:
        copies.append(copy.deepcopy(model) if how == "deepcopy" else pickle.dumps(model))

    processors = LogitsProcessorList([_At(take, tokens=20)])
    found = model.generate(**inputs, max_new_tokens=NEW, **GREEDY, logits_processor=processors)
    assert found.tolist() == expected
    twin = copies[0] if how == "deepcopy" else pickle.loads(copies[0])
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    for _ in range(2):
        assert twin.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist() == expected
    detach(twin)
    assert not [name for name, layer in twin.named_modules() if "forward" in vars(layer)]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copys_plug_knows_its_model(how: str) -> None:
    model = tiny()
    attach(model)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    plug = twin.generate.plug
    del model
    assert plug.warmup(max_length=40) > 0


def test_a_batch_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    inputs = prompt(model)
    plug = attach(model)
    with caplog.at_level(logging.WARNING, "hf_specplug"):
        for size in (2, 3, 4):
            ids = inputs["input_ids"].expand(size, -1)
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, **GREEDY)
    counted = plug.stats.calls + sum(plug.stats.fallbacks.values())
    assert counted == 3
    assert len(caplog.records) <= 1


def test_continuous_batching_leaves_a_word() -> None:
    model = tiny(eos_token_id=-1)
    ids = prompt(model)["input_ids"].tolist()
    settings = {"max_new_tokens": 6, "do_sample": False}
    model.generation_config.update(**settings)
    expected = _batch(model, ids)
    plug = attach(model)
    assert _batch(model, ids) == expected
    (reason,) = plug.stats.fallbacks
    assert "continuous batching" in reason
    detach(model)
    assert "init_continuous_batching" not in vars(model)
    assert _batch(model, ids) == expected
    assert plug.stats.fallbacks[reason] == 1


def _batch(model: Any, ids: list[list[int]]) -> list[list[int]]:
    small = ContinuousBatchingConfig(page_size=32, num_blocks=8, max_batch_tokens=64)
    outputs = model.generate_batch(
        inputs=[*ids, *ids], continuous_batching_config=small, progress_bar=False
    )
    return [output.generated_tokens for output in outputs.values()]
