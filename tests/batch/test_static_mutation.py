"""The identity tests of static batches notice: each of these mutations changes the output."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_specplug.hf.reach import Reach
from hf_specplug.hf.slot_cache import SlotCache
from hf_specplug.verify.feed import Feed
from hf_specplug.verify.masks import SlotMasks
from hf_specplug.verify.static_forward import StaticForward
from tests.batch.test_mutation import GREEDY, NAMES, RAGGED, outputs_differ, swapped
from tests.batch.test_returned import RETURNED, same
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make

STATIC: dict[str, Any] = {"cache_implementation": "static"}


def static_differs(name: str, lengths: list[int] = RAGGED) -> bool:
    return outputs_differ(name, lengths, {**GREEDY, **STATIC})


@pytest.mark.parametrize("name", NAMES)
def test_unmutated(name: str) -> None:
    assert not static_differs(name)
    assert not static_differs(name, [24, 24, 24])


@pytest.mark.parametrize("name", NAMES)
def test_trees_of_two_rows_swapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = SlotMasks.build

    def mutated(self: SlotMasks, seen: torch.Tensor, *rest: Any) -> Any:
        return build(self, seen[swapped(len(seen))], *rest)

    monkeypatch.setattr(SlotMasks, "build", mutated)
    assert static_differs(name)


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_two_rows_swapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pad = SlotMasks.pad

    def mutated(self: SlotMasks, prompt_mask: torch.Tensor) -> None:
        pad(self, prompt_mask[swapped(len(prompt_mask))])

    monkeypatch.setattr(SlotMasks, "pad", mutated)
    assert static_differs(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [RAGGED, [24, 24, 24]], ids=["padded", "equal"])
def test_slots_of_two_rows_swapped(
    name: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows then have wrong slots, masks and positions at once; and only wrong slots."""
    write, build = Feed.write, SlotMasks.build
    mutations = monkeypatch.context

    def other_past(self: Feed, tokens: Any, depths: Any, seen: Any, past: Any, places: Any) -> None:
        write(self, tokens, depths, seen, past[swapped(len(past))], places)

    with mutations() as patch:
        patch.setattr(Feed, "write", other_past)
        assert static_differs(name, lengths)

    body = StaticForward._body

    def other_slots(self: StaticForward, *arguments: Any) -> Any:
        def building(masks: SlotMasks, seen: Any, depths: Any, slots: torch.Tensor) -> Any:
            self.cache.target.slots = slots[swapped(len(slots))]
            return build(masks, seen, depths, slots)

        with mutations() as patch:
            patch.setattr(SlotMasks, "build", building)
            return body(self, *arguments)

    with mutations() as patch:
        patch.setattr(StaticForward, "_body", other_slots)
        assert static_differs(name, lengths)


@pytest.mark.parametrize("name", NAMES)
def test_positions_of_two_rows_swapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = StaticForward.open

    def mutated(self: StaticForward, *arguments: Any) -> None:
        opened(self, *arguments)
        self._starts[:] = self._starts[swapped(len(self._starts))]

    monkeypatch.setattr(StaticForward, "open", mutated)
    assert static_differs(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [[0], [0, 1, 2]], ids=["one row", "all rows"])
def test_compaction_without_gather(
    name: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = SlotCache.keep

    def careless(self: SlotCache, kept: Any) -> None:
        keep(self, [range(len(own)) if row in rows else own for row, own in enumerate(kept)])

    monkeypatch.setattr(SlotCache, "keep", careless)
    assert static_differs(name)


@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "llama4"])
def test_masks_without_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    init = SlotMasks.__init__

    def wide(self: SlotMasks, *arguments: Any) -> None:
        init(self, *arguments)
        self._reaches = dict.fromkeys(self._reaches, Reach())

    monkeypatch.setattr(SlotMasks, "__init__", wide)
    assert static_differs(name)


def rename(self: SlotCache, sources: Any, targets: Any) -> None:
    """A `_move` that leaves the slots where they are."""
    new = dict(zip(sources, targets, strict=True))
    self._place_of = [new.get(place, place) for place in self._place_of]
    self.ends[targets] = self.ends[sources]


def without_company(self: SlotCache, sources: Any, targets: Any) -> None:
    """A `_move` that leaves masks and positions where they are."""
    beside, self.beside = self.beside, []
    move(self, sources, targets)
    self.beside = beside


def unordered(self: SlotCache) -> None:
    """A `restore` that leaves the rows where they are."""
    self._live = list(range(len(self._place_of)))
    self._use(len(self._live))


move = SlotCache._move


@pytest.mark.parametrize(
    ("name", "mutation"),
    [("_move", rename), ("_move", without_company), ("restore", unordered)],
    ids=["slots stay", "masks and positions stay", "rows handed back in another order"],
)
def test_rows_that_move(name: str, mutation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that have ended make room; the cache that is handed back has them in order."""
    model, inputs = make("llama"), batch([5, 9, 24, 3])
    every = {**RETURNED, **ENDS, **STATIC, "do_sample": False}

    def differs() -> bool:
        expected, _ = plain(model, inputs, **every)
        kept = [(x.keys.clone(), x.values.clone()) for x in expected.past_key_values.layers]
        drafter = ReplayRows(inputs, expected.sequences, rank=1)
        output, _, plug = plugged(model, inputs, drafter, **every)
        assert len(plug.stats.batches) > 1  # rows have left
        for layer, (keys, values) in zip(output.past_key_values.layers, kept, strict=True):
            if not torch.allclose(layer.keys, keys, atol=2e-4):
                return True
            if not torch.allclose(layer.values, values, atol=2e-4):
                return True
        return not same(output, expected)

    assert not differs()
    monkeypatch.setattr(SlotCache, name, mutation)
    assert differs()
