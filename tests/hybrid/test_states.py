"""What a call leaves in a cache of the caller: the states that plain `generate` leaves."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from hf_specplug.drafters.contract import Context
from hf_specplug.hf.states import KeptStates
from tests.helpers import zoo
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.hybrid.families import CHAINS, assert_same_cache, make, text
from tests.hybrid.test_identity import GREEDY, replay
from tests.sweep.recipe import VOCAB

COUNT = 14
SOME = ["bamba", "deepseek_v4", "minimax", "qwen3_5_text", "qwen4_exp_text", "zaya"]


def own_cache(model: Any) -> Any:
    """A cache as a caller makes it."""
    if model.config.model_type == "minimax":
        from transformers.models.minimax.modeling_minimax import MiniMaxCache

        return MiniMaxCache()
    return DynamicCache(config=model.config.get_text_config(decoder=True))


@pytest.mark.parametrize("name", CHAINS)
def test_the_cache_that_is_returned(name: str) -> None:
    """Calls that end after any number of accepted tokens of a chain, and after a rejected one."""
    model, inputs = make(name), text(24)
    expected, _ = plain(model, inputs, max_new_tokens=COUNT, **GREEDY)
    reference = new_tokens(expected, COUNT)
    for count in range(COUNT - 5, COUNT):
        every = {"max_new_tokens": count, "return_dict_in_generate": True, **GREEDY}
        expected, _ = plain(model, inputs, **every)
        output, _, plug = plugged(model, inputs, replay(reference, 4, 3), 9, **every)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert_same_cache(name, output.past_key_values, expected.past_key_values)
        assert plug.stats.forwards < count - 1


@pytest.mark.parametrize("name", SOME)
def test_two_turns(name: str) -> None:
    model, first = make(name), text(20)
    outputs, caches = [], []
    for attached in (False, True):
        cache = own_cache(model)
        ids = first["input_ids"]
        for turn in range(2):
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            settings = {"max_new_tokens": COUNT, "past_key_values": cache, **GREEDY}
            if attached:
                drafter = replay(new_tokens(outputs[turn], COUNT), 4, turn)
                output, _, plug = plugged(model, inputs, drafter, 9, **settings)
                assert output.tolist() == outputs[turn].tolist(), turn
                assert plug.stats.forwards < COUNT - 1
            else:
                output, _ = plain(model, inputs, **settings)
                outputs.append(output)
            ids = torch.cat([output, text(9, seed=7)["input_ids"]], dim=1)
        caches.append(cache)
    assert_same_cache(name, caches[1], caches[0])


class Refusing(LogitsProcessor):  # type: ignore[misc]
    """Raises at the `at`-th token."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise ZeroDivisionError
        return scores


@pytest.mark.parametrize("name", SOME)
def test_a_processor_that_raises(name: str) -> None:
    """At each place of a chain of which the fourth token is wrong."""
    model, inputs = make(name), text(20)
    expected, _ = plain(model, inputs, max_new_tokens=COUNT, **GREEDY)
    reference = new_tokens(expected, COUNT)
    for at in (1, 2, 5, 6, 9):
        caches = []
        for attached in (False, True):
            caches.append(own_cache(model))
            settings = {
                "max_new_tokens": COUNT,
                "past_key_values": caches[-1],
                "logits_processor": LogitsProcessorList([Refusing(at)]),
                **GREEDY,
            }
            run = partial(plugged, drafters=replay(reference, 5, 4), nodes=9) if attached else plain
            with pytest.raises(ZeroDivisionError):
                run(model, inputs, **settings)
        assert_same_cache(name, caches[1], caches[0])


def test_a_processor_that_raises_in_a_tree() -> None:
    """The cache keeps the path to the node whose scores were processed, as plain would."""
    model, inputs = zoo.make("llama", torch.float64), zoo.prompt(zoo.make("llama"))
    expected, _ = plain(model, inputs, max_new_tokens=COUNT, **GREEDY)
    drafter = Replay(new_tokens(expected, COUNT), lambda place: place % 5 == 4, rank=1)
    for at in (2, 4, 8):
        caches = [own_cache(model), own_cache(model)]
        for cache, run in zip(caches, (plain, partial(plugged, drafters=drafter)), strict=True):
            refusing = LogitsProcessorList([Refusing(at)])
            settings = {"past_key_values": cache, "logits_processor": refusing, **GREEDY}
            with pytest.raises(ZeroDivisionError):
                run(model, inputs, max_new_tokens=COUNT, **settings)
        assert_same_cache("llama", caches[1], caches[0])


class Interrupting(Replay):
    """Interrupts the third forward pass of a call at the model's last layer."""

    def hook(self, model: Any) -> Interrupting:
        self.layer, self.passes = model.get_decoder().layers[-1], 0
        return self

    def begin(self, context: Context) -> None:
        super().begin(context)  # after the trial
        self.handle = self.layer.register_forward_pre_hook(self.interrupt)

    def interrupt(self, *arguments: Any) -> None:
        self.passes += 1
        if self.passes == 3:  # after the prompt and one chain
            self.handle.remove()
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", SOME)
def test_an_interrupted_forward_pass(name: str) -> None:
    """The cache is left as before the pass: that of a call that ended there."""
    model, inputs = make(name), text(20)
    expected, _ = plain(model, inputs, max_new_tokens=COUNT, **GREEDY)
    reference = new_tokens(expected, COUNT)
    caches = [own_cache(model), own_cache(model)]
    # of 8 drafted tokens 3 are right: with the prompt's and the corrected one, 5 are emitted
    drafter = Interrupting(reference, lambda place: place == 4, vocab=VOCAB).hook(model)
    settings = {"max_new_tokens": COUNT, **GREEDY}
    with pytest.raises(KeyboardInterrupt):
        plugged(model, inputs, drafter, 9, past_key_values=caches[0], **settings)
    plain(model, inputs, max_new_tokens=5, past_key_values=caches[1], **GREEDY)
    assert_same_cache(name, caches[0], caches[1])


@pytest.mark.parametrize("name", ["granitemoehybrid", "qwen3_next"])
def test_prefill_in_chunks(name: str) -> None:
    model, inputs = make(name), text(50)
    every = {
        "max_new_tokens": COUNT,
        "prefill_chunk_size": 16,
        "return_dict_in_generate": True,
        **GREEDY,
    }
    expected, _ = plain(model, inputs, **every)
    drafter = replay(expected.sequences[0, -COUNT:].tolist(), 4, 3)
    output, _, plug = plugged(model, inputs, drafter, 9, **every)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert_same_cache(name, output.past_key_values, expected.past_key_values)
    assert 0 < plug.stats.forwards < COUNT - 1


@pytest.mark.parametrize("name", CHAINS)
def test_kept_states(name: str) -> None:
    """A cache returns to what it was, bit for bit, and goes on from there."""
    model, inputs = make(name), text(20)
    output, _ = plain(model, inputs, max_new_tokens=20, return_dict_in_generate=True, **GREEDY)
    cache = output.past_key_values
    before = copy.deepcopy(cache)
    kept = KeptStates(cache)
    for width in (5, 2):
        kept.keep()
        with torch.no_grad():
            ids = text(width, seed=width)["input_ids"]
            found = model(ids, past_key_values=cache, use_cache=True).logits
            kept.put_back()
            again = model(ids, past_key_values=copy.deepcopy(cache), use_cache=True).logits
        assert torch.equal(found, again)
    assert_same_cache("minimax", cache, before)  # with the limit for what is not computed again
