"""A KV cache whose rows grow by different numbers of tokens: each row fills its own next slots.

The slot of a token is its index in the row, padding on the left included, as in plain `generate`.
The live slots of a row are therefore contiguous, and windows and chunks are counted as usual. The
slots behind them are masked until the row reaches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from hf_specplug.hf.slot_cache import groups, keep_paths, kind, states

_AHEAD = 64  # slots allocated beyond one and a half times the needed ones


class Target:
    """The slots that the next forward pass fills.

    Attributes:
        rows: int64[N, 1], 0 to N - 1.
        slots: int64[N, T], by row.
        past: the number of slots before its tokens, as a model is told that counts slots.
        end: the number of slots that its tokens may attend to.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    past: int
    end: int


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """The slots of one layer.

    Args:
        target: the slots that `update` fills.

    Attributes:
        keys, values: [N, heads, capacity, D], views of a block.
    """

    is_compileable = False
    is_sliding = False

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.is_initialized = True
        self._target = target

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the slots already exist."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states [N, heads, T, D] to the target slots; returns those of all slots."""
        target = self._target
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            rows, slots = target.rows.to(held.device), target.slots.to(held.device)
            held[rows, :, slots] = new.transpose(1, 2)
        return self.keys[:, :, : target.end], self.values[:, :, : target.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._target.end, 0

    def get_seq_length(self) -> int:
        return self._target.past

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):  # type: ignore[misc]
    """The slots of all rows and layers; takes over the cache that prefill left.

    Layers of the same shape share a block, so that keeping the accepted paths of all rows is one
    gather and one scatter.

    Args:
        source: a filled cache. A sliding-window layer has only its last tokens.
        length: number of tokens of the prompt, padding included.

    Attributes:
        lengths: int64[N], the number of live slots of each row.
    """

    def __init__(self, source: Any, length: int) -> None:
        parts = states(source)
        kinds = [kind(part) for part in parts]
        rows = parts[0].shape[0]
        self.lengths: NDArray[np.int64] = np.full(rows, length)
        self._live = list(range(rows))
        self._parked: dict[int, list[torch.Tensor]] = {}
        self._target = Target()
        self._groups = groups(kinds, joined=True)
        self._blocks: list[torch.Tensor] = []
        super().__init__(layers=[RowLayer(self._target) for _ in parts[::2]])
        for places in self._groups:
            (heads, width), dtype, device = kinds[places[0]]
            size = (len(places), rows, heads, _capacity(length), width)
            block = torch.zeros(size, dtype=dtype, device=device)
            for index, place in enumerate(places):
                held = min(parts[place].shape[2], length)
                block[index, :, :, length - held : length] = parts[place][:, :, :held]
            self._blocks.append(block)
        self._share()

    def _share(self) -> None:
        """Give each layer its views of the blocks."""
        for block, places in zip(self._blocks, self._groups, strict=True):
            for index, place in enumerate(places):
                setattr(self.layers[place // 2], "values" if place % 2 else "keys", block[index])

    def aim(self, width: int, past: int | None = None) -> None:
        """Make the next forward pass fill `width` slots of each row, behind its live ones.

        Args:
            past: the number of past tokens to state; by default that of the longest row.
        """
        longest = int(self.lengths.max())
        end = longest + width
        if end > self._blocks[0].shape[3]:
            self._grow(_capacity(end))
        slots = self.lengths[:, None] + np.arange(width)
        target, device = self._target, self._blocks[0].device
        target.rows = torch.arange(len(slots), device=device)[:, None]
        target.slots, target.end = torch.from_numpy(slots).to(device), end
        target.past = longest if past is None else past

    def _grow(self, capacity: int) -> None:
        """Move all slots to larger blocks. New slots are 0, as masked values must be finite."""
        for index, block in enumerate(self._blocks):
            missing = capacity - block.shape[3]
            self._blocks[index] = torch.nn.functional.pad(block, (0, 0, 0, missing))
        self._share()

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        """Keep some of the slots that the last forward pass filled, and drop the others.

        Args:
            kept: for each row the ascending indices of the slots to keep, starting at 0.
        """
        keep_paths(self._blocks, kept, range(len(kept)), self.lengths.tolist())
        self.lengths += [len(indices) for indices in kept]

    def select(self, rows: Sequence[int], park: bool = False) -> None:
        """Continue with these rows only, in this order.

        Args:
            park: whether the live slots of the others are kept for `restore`.
        """
        if park:
            self._park(sorted(set(range(len(self._live))) - set(rows)))
        self._live = [self._live[row] for row in rows]
        self.lengths = self.lengths[list(rows)]
        chosen = torch.tensor(rows)
        for index, block in enumerate(self._blocks):
            self._blocks[index] = block.index_select(1, chosen.to(block.device))
        self._share()

    def _park(self, rows: Sequence[int]) -> None:
        for row, end in zip(rows, self.lengths[list(rows)].tolist(), strict=True):
            held = [block[:, row, :, :end].clone() for block in self._blocks]
            self._parked[self._live[row]] = held

    def restore(self) -> None:
        """Continue with all rows, in their first order; those that left have been parked."""
        self._park(range(len(self._live)))
        parked = [self._parked[row] for row in sorted(self._parked)]
        self._live, self._parked = list(range(len(parked))), {}
        self.lengths = np.array([blocks[0].shape[2] for blocks in parked])
        capacity = _capacity(int(self.lengths.max()))
        for index, block in enumerate(self._blocks):
            places, _, heads, _, width = block.shape
            whole = block.new_zeros((places, len(parked), heads, capacity, width))
            for row, blocks in enumerate(parked):
                whole[:, row, :, : blocks[index].shape[2]] = blocks[index]
            self._blocks[index] = whole
        self._share()


def _capacity(needed: int) -> int:
    """The number of slots to allocate for `needed` tokens."""
    return needed + needed // 2 + _AHEAD
