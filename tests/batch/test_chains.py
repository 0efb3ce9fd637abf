"""Batches of models that verify chains only: token identity with plain `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from hf_specplug.hf.aligned_cache import AlignedCache
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.batch.test_returned import RETURNED, same
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import FAMILIES, make

DRAFTERS = list(DEFAULT_DRAFTERS)
LENGTHS = [7, 24, 1, 16, 3, 20, 12, 2]
NAMES = ["bloom", "falcon-alibi", "mpt", "gpt-neo"]
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "ends": {"do_sample": False, **ENDS},
    "sampled": {"do_sample": True, "top_k": 0, **ENDS},
    "processed": {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2, **ENDS},
}


def always(position: int) -> bool:
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_chain_family(name: str, kind: str, count: int, dtype: torch.dtype) -> None:
    model, lengths = make(name, dtype), LENGTHS[:count]
    if dtype == torch.float64 and model.config._attn_implementation == "eager":
        lengths = [24] * count  # with padding, transformers itself gives NaN
    inputs = batch(lengths, seed=count)
    every = {"max_new_tokens": 32, **KINDS[kind]}
    expected, state = plain(model, inputs, **every)
    wrong = {0: lambda at: at % 3 == 2, 2: always}
    for drafters in (ReplayRows(inputs, expected, wrong), DRAFTERS):
        output, after, plug = plugged(model, inputs, drafters, **every)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert plug.stats.engines == {"chain, aligned": 1}
        assert not plug.stats.dropped
        if drafters is not DRAFTERS and count == 2:
            assert plug.stats.accepted > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_scores_logits_and_cache(name: str, kind: str) -> None:
    model, inputs = make(name), batch(LENGTHS[:4])
    every = {**RETURNED, **KINDS[kind]}
    expected, state = plain(model, inputs, **every)
    output, after, plug = plugged(model, inputs, DRAFTERS, **every)
    assert same(output, expected)
    assert torch.equal(after, state)
    assert plug.stats.forwards > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_second_turn_on_the_callers_cache(name: str) -> None:
    model, inputs = make(name), batch(LENGTHS[:3])
    every: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, **ENDS}
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    turns = torch.randint(10, 90, (2, 3, 6), generator=torch.Generator().manual_seed(5))
    for turn in turns:
        expected, _ = plain(model, inputs, past_key_values=caches[0], **every)
        output, _, plug = plugged(model, inputs, DRAFTERS, past_key_values=caches[1], **every)
        assert output.tolist() == expected.tolist()
        assert plug.stats.forwards > 0
        ids = torch.cat([expected, turn], dim=1)
        new = ids[:, inputs["input_ids"].shape[1] :]
        mask = torch.cat([inputs["attention_mask"], (new != 0).long()], dim=1)
        inputs = {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", NAMES)
def test_to_the_last_position(name: str) -> None:
    """A row far behind drafts no further than the longest row has slots."""
    model, inputs = make(name), batch([7, 24, 16])
    every: dict[str, Any] = {"do_sample": False, "max_length": 256}
    expected, _ = plain(model, inputs, **every)
    drafter = ReplayRows(inputs, expected, {1: always})
    output, _, plug = plugged(model, inputs, drafter, nodes=24, **every)
    assert output.tolist() == expected.tolist()
    assert plug.stats.accepted > 200


def test_models_that_count_slots_from_the_first_run_plainly() -> None:
    model, inputs = make("llama4"), batch([7, 24])
    before, model.config.floor_scale = model.config.floor_scale, 16
    try:
        every: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20}
        expected, _ = plain(model, inputs, **every)
        output, _, plug = plugged(model, inputs, DRAFTERS, **every)
    finally:
        model.config.floor_scale = before
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards == 0


STEPS = st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 5), min_size=3)), max_size=8)


@given(st.integers(1, 5), STEPS, st.sampled_from([None, [2, 0], [1]]))
@settings(deadline=None)
def test_texts_end_at_the_same_slot(
    length: int, steps: list[tuple[int, list[int]]], left: list[int] | None
) -> None:
    """Against a list of values per row: moved, rows that leave, and rows that come back."""
    source = DynamicCache()
    values = torch.arange(1.0, 3 * length + 1).view(3, 1, length, 1)
    source.update(values, -values, 0)
    shown = torch.ones((3, length), dtype=torch.int64)
    shown[0, : length - 1] = 0
    cache = AlignedCache(source, length, shown)
    texts = {row: each.flatten().tolist() for row, each in enumerate(values)}
    live, mark = [0, 1, 2], 100.0

    def check() -> None:
        longest = max(len(texts[row]) for row in live)
        mask = cache.mask(2)
        for place, row in enumerate(live):
            text, layer = texts[row], cache.layers[0]
            assert layer.keys.shape[2] == longest
            assert layer.keys[place, 0, longest - len(text) :, 0].tolist() == text
            assert layer.values[place, 0, longest - len(text) :, 0].neg().tolist() == text
            hidden = longest - len(text) + (length - 1) * (row == 0)
            assert mask[place].tolist() == [0] * hidden + [1] * (longest + 2 - hidden)

    for number, (width, counts) in enumerate(steps):
        if left is not None and number == len(steps) // 2:
            cache.select(left, park=True)
            live = left
        check()
        new = mark + torch.arange(float(len(live) * width)).view(len(live), 1, width, 1)
        mark += 100
        cache.update(new, -new, 0)
        kept = [min(count, width) for count in counts[: len(live)]]
        for place, row in enumerate(live):
            texts[row] += new[place, 0, : kept[place], 0].tolist()
        cache.keep(kept)
    cache.restore()
    live = [0, 1, 2]
    check()


class Mutations:
    """Errors in where a row's text is; each is a method's replacement."""

    mask = AlignedCache.mask

    @staticmethod
    def unmoved(self: AlignedCache, counts: Any) -> None:
        end = int(self.lengths.max()) + max(counts)
        self.lengths = self.lengths + counts
        longest = int(self.lengths.max())
        self._set(lambda part: part[:, :, end - longest : end])

    @staticmethod
    def shown(self: AlignedCache, width: int) -> torch.Tensor:
        return torch.ones_like(Mutations.mask(self, width))

    @staticmethod
    def of_another_row(self: AlignedCache, width: int) -> torch.Tensor:
        return Mutations.mask(self, width).roll(1, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "mutation"),
    [("keep", Mutations.unmoved), ("mask", Mutations.shown), ("mask", Mutations.of_another_row)],
)
def test_mutations_are_noticed(
    name: str, method: str, mutation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make(name), batch([7, 24, 16])
    every: dict[str, Any] = {"do_sample": False, "max_new_tokens": 32}
    expected, _ = plain(model, inputs, **every)
    drafter = ReplayRows(inputs, expected, {0: lambda at: at % 3 == 2, 1: always})
    assert plugged(model, inputs, drafter, **every)[0].tolist() == expected.tolist()
    monkeypatch.setattr(AlignedCache, method, mutation)
    output, _, _ = plugged(model, inputs, drafter, **every)
    assert output.tolist() != expected.tolist()


def test_the_trial_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in what belongs to a row is found before a call is drafted."""
    monkeypatch.setattr(AlignedCache, "keep", Mutations.unmoved)
    model, inputs = FAMILIES["bloom"].build().eval(), batch([7, 24])
    _, _, plug = plugged(model, inputs, DRAFTERS, do_sample=False, max_new_tokens=12)
    assert plug.stats.forwards == 0
    assert "a trial of bloom found a chain's logits off" in next(iter(plug.stats.fallbacks))
