"""What a batch returns besides its tokens: scores, logits and the cache; and a second turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from hf_specplug.batch import complete
from hf_specplug.hf.row_cache import RowCache
from hf_specplug.plug import DEFAULT_DRAFTERS
from hf_specplug.verify.row_acceptance import RowVerifier
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make

DRAFTERS = list(DEFAULT_DRAFTERS)
LENGTHS = [7, 24, 16, 1, 20, 5, 12, 3]
RETURNED: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "max_new_tokens": 40,
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "no ends": {"do_sample": False, "eos_token_id": None},
    "sampled": {"do_sample": True, "top_k": 0, "temperature": 0.8},
    "processed": {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2, "min_new_tokens": 4},
}


def same_cache(found: Any, expected: Any, tolerance: float = 2e-4) -> bool:
    pairs = zip(found.layers, expected.layers, strict=True)
    return found.get_seq_length() == expected.get_seq_length() and all(
        own.keys.shape == other.keys.shape
        and torch.allclose(own.keys, other.keys, atol=tolerance, rtol=tolerance)
        and torch.allclose(own.values, other.values, atol=tolerance, rtol=tolerance)
        for own, other in pairs
    )


def same(found: Any, expected: Any, tolerance: float = 2e-4) -> bool:
    """Whether tokens are equal, and scores, logits and caches up to rounding."""
    if type(found) is not type(expected) or found.keys() != expected.keys():
        return False
    for own, other in ((found.scores, expected.scores), (found.logits, expected.logits)):
        if (own is None) != (other is None) or len(own or ()) != len(other or ()):
            return False
        for one, two in zip(own or (), other or (), strict=True):
            if one.dtype != two.dtype or not torch.allclose(one, two, tolerance, tolerance):
                return False
    return found.sequences.tolist() == expected.sequences.tolist() and same_cache(
        found.past_key_values, expected.past_key_values, tolerance
    )


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt2"])
def test_scores_logits_and_cache(name: str, kind: str, count: int) -> None:
    model, inputs = make(name), batch(LENGTHS[:count], seed=count)
    every = {**RETURNED, **ENDS, **KINDS[kind]}
    for seed in range(2):
        expected, state = plain(model, inputs, seed=seed, **every)
        drafter = ReplayRows(inputs, expected.sequences, {0: lambda at: at % 3 == 2}, rank=1)
        for drafters in (drafter, DRAFTERS):
            output, after, plug = plugged(model, inputs, drafters, seed=seed, **every)
            assert same(output, expected)
            assert torch.equal(after, state)
            assert plug.stats.forwards > 0
            assert not plug.stats.fallbacks


@pytest.mark.parametrize("name", ["llama", "gemma3", "llama4"])
def test_in_float64(name: str) -> None:
    model, inputs = make(name, torch.float64), batch([24, 24, 24])
    every = {**RETURNED, **ENDS, "do_sample": False}
    expected, _ = plain(model, inputs, **every)
    output, _, plug = plugged(model, inputs, DRAFTERS, **every)
    assert same(output, expected, 1e-6)
    assert plug.stats.forwards > 0


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "gpt2"])
@pytest.mark.parametrize("wanted", ["scores", "logits", "neither"])
def test_only_what_was_asked_for(name: str, wanted: str) -> None:
    model, inputs = make(name), batch(LENGTHS[:3])
    every = {**RETURNED, **ENDS, "do_sample": False}
    every |= {f"output_{other}": other == wanted for other in ("scores", "logits")}
    expected, _ = plain(model, inputs, **every)
    output, _, _ = plugged(model, inputs, DRAFTERS, **every)
    assert same(output, expected)
    assert [kind for kind in ("scores", "logits") if kind in output] == [wanted][: wanted in output]


def test_padding_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "_WIDTH", 3)
    model, inputs = make("mistral-window"), batch(LENGTHS)
    every = {**RETURNED, **ENDS, "do_sample": False, "repetition_penalty": 1.3}
    expected, _ = plain(model, inputs, **every)
    lengths = (expected.sequences[:, 24:] == 0).sum(1).tolist()
    assert max(lengths) > 10
    assert min(lengths) == 0
    output, _, _ = plugged(model, inputs, ReplayRows(inputs, expected.sequences), **every)
    assert same(output, expected)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "llama4", "opt"])
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_a_second_turn_on_the_callers_cache(name: str, sample: bool) -> None:
    """Rows end at different times: the second turn's text has holes where they were padded."""
    model, inputs = make(name), batch(LENGTHS[:3])
    every: dict[str, Any] = {"do_sample": sample, "max_new_tokens": 30, "top_k": 0, **ENDS}
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    turns = torch.randint(10, 90, (2, 3, 6), generator=torch.Generator().manual_seed(5))
    for turn in turns:
        expected, state = plain(model, inputs, past_key_values=caches[0], **every)
        output, after, plug = plugged(model, inputs, DRAFTERS, past_key_values=caches[1], **every)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert plug.stats.forwards > 0
        assert same_cache(caches[1], caches[0])
        ids = torch.cat([expected, turn], dim=1)
        new = ids[:, inputs["input_ids"].shape[1] :]
        mask = torch.cat([inputs["attention_mask"], (new != 0).long()], dim=1)
        inputs = {"input_ids": ids, "attention_mask": mask}
    assert bool((inputs["attention_mask"][:, 24:] == 0).any())


def test_a_returned_cache_serves_the_next_turn() -> None:
    model, inputs = make("llama"), batch(LENGTHS[:4])
    every: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, **ENDS}
    expected, _ = plain(model, inputs, return_dict_in_generate=True, **every)
    first, _, _ = plugged(model, inputs, DRAFTERS, return_dict_in_generate=True, **every)
    ids = torch.cat([expected.sequences, torch.randint(10, 90, (4, 5))], dim=1)
    following = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    again, _ = plain(model, following, past_key_values=expected.past_key_values, **every)
    output, _, plug = plugged(
        model, following, DRAFTERS, past_key_values=first.past_key_values, **every
    )
    assert output.tolist() == again.tolist()
    assert plug.stats.forwards > 0


def forget(self: RowCache, rows: Any, park: bool = False) -> None:
    """A `select` that parks empty slots."""
    select(self, rows, park)
    for row, blocks in self._parked.items():
        self._parked[row] = [torch.zeros_like(block) for block in blocks]


def late(self: RowVerifier, outputs: Any, token: int, count: int) -> None:
    """A `pad` that takes the outputs of the token before."""
    outputs.logits = outputs.logits.roll(1, 0)
    pad(self, outputs, token, count)


def shuffled(self: RowCache) -> None:
    """A `restore` in another order."""
    restore(self)
    for index, block in enumerate(self._blocks):
        self._blocks[index] = block.roll(1, 1)
    self.lengths = np.roll(self.lengths, 1)
    self._share()


select, restore, pad = RowCache.select, RowCache.restore, RowVerifier.pad


@pytest.mark.parametrize(
    ("kind", "name", "mutation"),
    [(RowCache, "select", forget), (RowCache, "restore", shuffled), (RowVerifier, "pad", late)],
)
def test_the_comparison_notices(
    kind: Any, name: str, mutation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make("llama"), batch(LENGTHS[:4])
    every = {**RETURNED, **ENDS, "do_sample": False}
    expected, _ = plain(model, inputs, **every)
    assert same(plugged(model, inputs, DRAFTERS, **every)[0], expected)
    monkeypatch.setattr(kind, name, mutation)
    assert not same(plugged(model, inputs, DRAFTERS, **every)[0], expected)
