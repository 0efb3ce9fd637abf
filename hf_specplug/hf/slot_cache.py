"""A key-value cache of fixed slots: addresses and shapes stay, whatever is written where.

The slots of all layers lie in one block (one per shape, where layers differ), so that keeping an
accepted path is one gather and one scatter, not two per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from hf_specplug.hf.cache import append_slots, decoder_cache


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's slots.

    Args:
        keys, values: [1, heads, capacity, D], views of a block.
        target: holds `slots` int64[T], where the next T tokens go.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, target: Target) -> None:
        super().__init__()
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._target = target

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the slots are there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states to the target slots; return all slots."""
        self.keys.index_copy_(2, self._target.slots, key_states)
        self.values.index_copy_(2, self._target.slots, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return self._target.slots[0]  # type: ignore[return-value]  # as a StaticLayer's: no sync

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class Target:
    """Where the tokens of the next forward pass go: `slots` int64[T]."""

    def __init__(self, device: torch.device) -> None:
        self.slots = torch.zeros(1, dtype=torch.int64, device=device)


class SlotCache(Cache):  # type: ignore[misc]
    """Fixed slots for all layers of a model, to take over the cache that its prompt left.

    Args:
        like: a filled cache: its layers say how many heads of which size there are.
        capacity: slots.
        joined: whether layers of the same shape share a block; torch.compile wants them apart.

    Attributes:
        target: where the next forward pass writes.
    """

    def __init__(self, like: Any, capacity: int, joined: bool = True) -> None:
        self.capacity = capacity
        kinds = [_kind(part) for part in _states(like)]
        self.target = Target(kinds[0][2])
        self._blocks: list[torch.Tensor] = []
        views = [torch.empty(0)] * len(kinds)
        for places in _groups(kinds, joined):
            (rows, heads, width), dtype, device = kinds[places[0]]
            size = (len(places), rows, heads, capacity, width)
            block = torch.zeros(size, dtype=dtype, device=device)
            self._blocks.append(block)
            for index, place in enumerate(places):
                views[place] = block[index]
        pairs = zip(views[::2], views[1::2], strict=True)
        super().__init__(layers=[SlotLayer(*pair, self.target) for pair in pairs])

    def fits(self, like: Any) -> bool:
        """Whether the text of another cache can be loaded."""
        return [_kind(part) for part in _states(self)] == [_kind(part) for part in _states(like)]

    def load(self, source: Any, length: int) -> None:
        """Take over a text of `length` tokens; of a sliding layer what it still has: its end."""
        for layer, old in zip(self.layers, decoder_cache(source).layers, strict=True):
            held = min(old.keys.shape[2], length)
            layer.keys[:, :, length - held : length] = old.keys[:, :, :held]
            layer.values[:, :, length - held : length] = old.values[:, :, :held]

    def append_slots(self, target: Any, start: int, end: int) -> None:
        """Append the slots from `start` to `end` to another cache."""
        append_slots(self, target, start, end)

    def keep(self, base: int, kept: Sequence[int]) -> None:
        """Of the slots from `base` on, move those at `kept` (ascending, starting at 0) together."""
        if kept[-1] == len(kept) - 1:
            return
        chosen = torch.tensor(kept, device=self.target.slots.device) + base
        for block in self._blocks:
            block[:, :, :, base : base + len(kept)] = block.index_select(3, chosen)


def _states(cache: Any) -> list[torch.Tensor]:
    """Keys and values of all layers, one after the other."""
    return [part for layer in decoder_cache(cache).layers for part in (layer.keys, layer.values)]


def _kind(states: torch.Tensor) -> tuple[tuple[int, int, int], torch.dtype, torch.device]:
    """(rows, heads, size of a head), and how and where it is stored."""
    rows, heads, _, width = states.shape
    return (rows, heads, width), states.dtype, states.device


def _groups(kinds: list[Any], joined: bool) -> list[list[int]]:
    """Which layers' keys and values share a block."""
    if not joined:
        return [[place] for place in range(len(kinds))]
    return [
        [place for place, other in enumerate(kinds) if other == kind]
        for kind in dict.fromkeys(kinds)
    ]
