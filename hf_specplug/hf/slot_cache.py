"""A KV cache of fixed slots: its addresses and shapes are static.

The slots of all layers lie in one block (one block per shape if layers differ). Keeping an accepted
path is then one gather and one scatter instead of two per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from hf_specplug.hf.cache import append_slots, decoder_cache


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """The slots of one layer.

    Args:
        keys, values: [1, heads, capacity, D], views of a block.
        target: its `slots` int64[T] are those that the next T tokens fill.
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
        """Do nothing: the slots already exist."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states to the target slots; returns the states of all slots."""
        self.keys.index_copy_(2, self._target.slots, key_states)
        self.values.index_copy_(2, self._target.slots, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return self._target.slots[0]  # type: ignore[return-value]  # a tensor, as in StaticLayer: no sync

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class Target:
    """The slots that the next forward pass fills: `slots` int64[T]."""

    def __init__(self, device: torch.device) -> None:
        self.slots = torch.zeros(1, dtype=torch.int64, device=device)


class SlotCache(Cache):  # type: ignore[misc]
    """Fixed slots for all layers of a model; takes over the cache that prefill left.

    Args:
        like: a filled cache. Its layers give the number and the size of the heads.
        capacity: number of slots per layer.
        joined: whether layers of the same shape share a block; torch.compile needs separate blocks.

    Attributes:
        target: the slots that the next forward pass writes.
    """

    def __init__(self, like: Any, capacity: int, joined: bool = True) -> None:
        self.capacity = capacity
        kinds = [kind(part) for part in states(like)]
        self.target = Target(kinds[0][2])
        self._blocks: list[torch.Tensor] = []
        views = [torch.empty(0)] * len(kinds)
        for places in groups(kinds, joined):
            (rows, heads, width), dtype, device = kinds[places[0]]
            size = (len(places), rows, heads, capacity, width)
            block = torch.zeros(size, dtype=dtype, device=device)
            self._blocks.append(block)
            for index, place in enumerate(places):
                views[place] = block[index]
        pairs = zip(views[::2], views[1::2], strict=True)
        super().__init__(layers=[SlotLayer(*pair, self.target) for pair in pairs])

    def fits(self, like: Any) -> bool:
        """Whether the text of another cache can be loaded: all shapes, dtypes and devices match."""
        return [kind(part) for part in states(self)] == [kind(part) for part in states(like)]

    def load(self, source: Any, length: int) -> None:
        """Copy a text of `length` tokens; a sliding-window layer has only its last tokens."""
        for layer, old in zip(self.layers, decoder_cache(source).layers, strict=True):
            held = min(old.keys.shape[2], length)
            layer.keys[:, :, length - held : length] = old.keys[:, :, :held]
            layer.values[:, :, length - held : length] = old.values[:, :, :held]

    def append_slots(self, target: Any, start: int, end: int) -> None:
        """Append the slots from `start` to `end` (exclusive) to another cache."""
        append_slots(self, target, start, end)

    def keep(self, base: int, kept: Sequence[int]) -> None:
        """Keep some of the slots from `base` on by moving them together.

        Args:
            base: the first slot of the last forward pass.
            kept: ascending offsets from `base`, starting at 0.
        """
        if kept[-1] == len(kept) - 1:
            return
        chosen = torch.tensor(kept, device=self.target.slots.device) + base
        for block in self._blocks:
            block[:, :, :, base : base + len(kept)] = block.index_select(3, chosen)


def states(cache: Any) -> list[torch.Tensor]:
    """Keys and values of all layers: [keys, values, keys, values, ...]."""
    return [part for layer in decoder_cache(cache).layers for part in (layer.keys, layer.values)]


def kind(states: torch.Tensor) -> tuple[tuple[int, int, int], torch.dtype, torch.device]:
    """((rows, heads, size of a head), dtype, device)."""
    rows, heads, _, width = states.shape
    return (rows, heads, width), states.dtype, states.device


def groups(kinds: list[Any], joined: bool) -> list[list[int]]:
    """Indices of the keys and values that share a block, for each block."""
    if not joined:
        return [[place] for place in range(len(kinds))]
    return [
        [place for place, other in enumerate(kinds) if other == shape]
        for shape in dict.fromkeys(kinds)
    ]
