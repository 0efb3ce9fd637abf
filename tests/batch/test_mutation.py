"""The identity tests of batches notice: each of these mutations changes the output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_specplug.hf.reach import Reach
from hf_specplug.hf.row_cache import RowCache
from hf_specplug.verify.lockstep import LockstepNoise
from hf_specplug.verify.ragged import RaggedEngine
from hf_specplug.verify.row_masks import RowMasks
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}


def outputs_differ(name: str, lengths: list[int], settings: dict[str, Any] = GREEDY) -> bool:
    """Whether a batch differs from plain `generate`, with rows whose drafts differ in quality."""
    model, inputs = make(name), batch(lengths)
    expected, state = plain(model, inputs, **settings)
    wrong = {0: lambda position: position % 4 == 1, 1: lambda position: position % 3 == 2}
    drafter = ReplayRows(inputs, expected, wrong, ranks={0: 2, 1: 1})
    output, after, plug = plugged(model, inputs, drafter, nodes=12, **settings)
    assert plug.stats.forwards > 0
    return output.tolist() != expected.tolist() or not torch.equal(after, state)


def swapped(count: int) -> list[int]:
    """The numbers of `count` rows, the first two exchanged."""
    return [1, 0, *range(2, count)][:count] if count > 1 else [0]


NAMES = ["llama", "mistral-window", "gpt2"]
RAGGED = [7, 24, 16]


@pytest.mark.parametrize("name", NAMES)
def test_unmutated(name: str) -> None:
    assert not outputs_differ(name, RAGGED)
    assert not outputs_differ(name, [24, 24, 24])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["trees", "text"])
def test_masks_of_two_rows_swapped(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = RowMasks.build

    def mutated(self: RowMasks, seen: Any, depths: Any, lengths: Any) -> Any:
        order = swapped(len(seen))
        if part == "trees":
            return build(self, seen[order], depths, lengths)
        self._shown = self._shown[order]
        mask = build(self, seen, depths, lengths)
        self._shown = self._shown[order]
        return mask

    monkeypatch.setattr(RowMasks, "build", mutated)
    assert outputs_differ(name, RAGGED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [RAGGED, [24, 24, 24]], ids=["padded", "equal"])
def test_slots_of_two_rows_swapped(
    name: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    aim = RowCache.aim

    def mutated(self: RowCache, *arguments: int) -> None:
        aim(self, *arguments)
        self._target.slots = self._target.slots[swapped(len(self.lengths))]

    monkeypatch.setattr(RowCache, "aim", mutated)
    assert outputs_differ(name, lengths)


@pytest.mark.parametrize("name", NAMES)
def test_positions_of_two_rows_swapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = RaggedEngine._verify_rows

    def mutated(self: RaggedEngine, tokens: Any, *rest: Any) -> Any:
        starts = self._row_starts
        self._row_starts = starts[swapped(len(starts))]
        try:
            return verify(self, tokens, *rest)
        finally:
            self._row_starts = starts

    monkeypatch.setattr(RaggedEngine, "_verify_rows", mutated)
    assert outputs_differ(name, RAGGED)


@pytest.mark.parametrize("name", NAMES)
def test_positions_by_slot(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = RaggedEngine._verify_rows

    def by_slot(self: RaggedEngine, tokens: Any, depths: Any, *rest: Any) -> Any:
        depths = np.broadcast_to(np.arange(depths.shape[1]), depths.shape)
        return verify(self, tokens, depths, *rest)

    monkeypatch.setattr(RaggedEngine, "_verify_rows", by_slot)
    assert outputs_differ(name, RAGGED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [[0], [0, 1, 2]], ids=["one row", "all rows"])
def test_compaction_without_gather(
    name: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = RowCache.keep

    def careless(self: RowCache, kept: Any) -> None:
        chain = [range(len(own)) if row in rows else own for row, own in enumerate(kept)]
        keep(self, chain)

    monkeypatch.setattr(RowCache, "keep", careless)
    assert outputs_differ(name, RAGGED)


def test_trees_of_two_rows_swapped_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = RowCache.keep

    def mutated(self: RowCache, kept: Any) -> None:
        counts = [len(own) for own in kept]
        others = [kept[row] for row in swapped(len(kept))]
        keep(self, [[*own, *range(9)][:count] for own, count in zip(others, counts, strict=True)])

    monkeypatch.setattr(RowCache, "keep", mutated)
    assert outputs_differ("llama", RAGGED)


@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "llama4"])
def test_masks_without_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reach, "first", lambda self, slots, padding: np.zeros_like(slots))
    assert outputs_differ(name, RAGGED)


SAMPLED: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 30}


def test_noise_of_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pick = LockstepNoise.pick

    def other(self: LockstepNoise, rows: Any, steps: Any, probs: torch.Tensor) -> list[int]:
        return pick(self, [(row + 1) % 3 for row in rows], steps, probs)

    assert not outputs_differ("llama", RAGGED, SAMPLED)
    monkeypatch.setattr(LockstepNoise, "pick", other)
    assert outputs_differ("llama", RAGGED, SAMPLED)


def test_noise_of_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pick = LockstepNoise.pick

    def late(self: LockstepNoise, rows: Any, steps: Any, probs: torch.Tensor) -> list[int]:
        pairs = zip(rows, steps, strict=True)
        return pick(self, rows, [max(0, step - (row == 1)) for row, step in pairs], probs)

    assert not outputs_differ("llama", RAGGED, SAMPLED)
    monkeypatch.setattr(LockstepNoise, "pick", late)
    assert outputs_differ("llama", RAGGED, SAMPLED)


def test_a_row_that_leaves_without_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    select = RowCache.select

    def first(self: RowCache, rows: Any, park: bool = False) -> None:
        select(self, list(range(len(rows))), park)

    model, inputs = make("llama"), batch([5, 9, 24, 3])
    settings = {**GREEDY, **ENDS}
    expected, _ = plain(model, inputs, **settings)
    output, _, plug = plugged(model, inputs, ["context"], **settings)
    assert output.tolist() == expected.tolist()
    assert len(plug.stats.batches) > 1  # rows have left
    monkeypatch.setattr(RowCache, "select", first)
    output, _, _ = plugged(model, inputs, ["context"], **settings)
    assert output.tolist() != expected.tolist()
