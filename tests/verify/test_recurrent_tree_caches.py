"""What calls with trees through recurrent layers leave: the cache that plain `generate` leaves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from hf_specplug import attach, detach
from hf_specplug.hf.tree_states import rollback
from tests.helpers import tree_models
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.hf.test_tree_states import state_error
from tests.verify.test_recurrent_tree import KINDS, prompt


def turns(model: Any, cache: Any, drafters: Any, **settings: Any) -> list[Any]:
    """Two calls that share a cache; returns both outputs and what the cache was after the first."""
    first, _, _ = (
        (*plain(model, prompt(), past_key_values=cache, **settings), None)
        if drafters is None
        else plugged(model, prompt(), drafters, past_key_values=cache, **settings)
    )
    after = copy.deepcopy(cache)
    ids = torch.cat([first, tree_models.text(9, 7)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    second, _, _ = (
        (*plain(model, inputs, past_key_values=cache, **settings), None)
        if drafters is None
        else plugged(model, inputs, drafters, past_key_values=cache, **settings)
    )
    return [first, second, after]


@pytest.mark.parametrize("count", [1, 2, 13, 14, 15])
@pytest.mark.parametrize("name", KINDS)
def test_a_cache_of_the_caller_over_two_turns(name: str, count: int) -> None:
    model = tree_models.make(name)
    settings: dict[str, Any] = {"max_new_tokens": count, "do_sample": False}
    ours, theirs = (DynamicCache(config=model.config) for _ in range(2))
    expected = turns(model, theirs, None, **settings)
    drafter = Replay(new_tokens(expected[0], count), rank=1)
    found = turns(model, ours, drafter, **settings)
    for output, reference in zip(found[:2], expected[:2], strict=True):
        assert output.tolist() == reference.tolist()
    for cache, reference in ((found[2], expected[2]), (ours, theirs)):
        assert cache.get_seq_length() == reference.get_seq_length()
        assert state_error(cache, reference) < 1e-4


class Stop(Exception):
    pass


class Raises(LogitsProcessor):
    """Raises at its n-th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Stop
        return scores


@pytest.mark.parametrize("at", range(1, 12))
def test_a_processor_that_raises_leaves_what_plain_leaves(at: int) -> None:
    model = tree_models.make("qwen3_5")
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    drafter = Replay(new_tokens(plain(model, prompt(), **settings)[0], 20), rank=1)
    ours, theirs = (DynamicCache(config=model.config) for _ in range(2))
    scope = vars(__import__(type(model).__module__, fromlist=["x"]))
    before = dict(scope)
    raising = [LogitsProcessorList([Raises(at)]) for _ in range(2)]
    with pytest.raises(Stop):
        plain(model, prompt(), logits_processor=raising[0], past_key_values=theirs, **settings)
    every = {**settings, "logits_processor": raising[1], "past_key_values": ours}
    with pytest.raises(Stop):
        plugged(model, prompt(), drafter, **every)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert state_error(ours, theirs) < 1e-4
    assert scope == before


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_pass_that_raises_leaves_the_cache_before_it(at: int, layer: int) -> None:
    model = tree_models.make("qwen3_5")
    settings: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}
    reference = new_tokens(plain(model, prompt(), **settings)[0], 30)
    cache, armed, passes = DynamicCache(config=model.config), False, []
    drafter = Replay(reference, wrong=lambda p: p % 4 == 3, rank=1)

    def hook(module: Any, args: Any, output: Any) -> None:
        passes.extend([output] * armed)
        if len(passes) == at + 1:
            raise Stop

    handle = model.model.layers[layer].register_forward_hook(hook)
    plug = attach(model, drafters=drafter, nodes=12)
    try:
        model.generate(**prompt(), **settings)  # with the trial of a model that has a hook
        armed = True
        with pytest.raises(Stop):
            model.generate(**prompt(), **settings, past_key_values=cache)
    finally:
        detach(model)
        handle.remove()
    assert plug.stats.engines == {"tree, recurrent tree": 2}
    length = cache.get_seq_length()
    assert {layer.get_seq_length() for layer in cache.layers if hasattr(layer, "keys")} == {length}
    expected = DynamicCache(config=model.config)
    plain(
        model, prompt(), max_new_tokens=length - 30 + 1, do_sample=False, past_key_values=expected
    )
    assert expected.get_seq_length() == length
    assert state_error(cache, expected) < 1e-4


def test_an_offloaded_cache_is_not_rolled_back() -> None:
    cache = DynamicCache(config=tree_models.make("qwen3_5").config)
    assert rollback(cache) == ("tree", "")
    cache.offloading = True
    assert rollback(cache)[0] == "plain"
