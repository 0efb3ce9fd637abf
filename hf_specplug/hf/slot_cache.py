"""A KV cache of fixed slots: its addresses and shapes are static.

The slots of all rows and layers lie in one block (one block per shape if layers differ). Keeping
the accepted paths is then one gather and one scatter instead of two per layer. A forward pass takes
the first rows of the blocks, so that it can shrink without changing an address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from hf_specplug.hf.cache import decoder_cache


class Target:
    """The slots that the next forward pass fills.

    Attributes:
        rows: int64[N, 1], 0 to N - 1.
        slots: int64[N, T], by row.
    """

    rows: torch.Tensor
    slots: torch.Tensor


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """The slots of one layer.

    Args:
        keys, values: [rows, heads, capacity, D], views of a block.
        target: the slots that `update` fills.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, target: Target) -> None:
        super().__init__()
        self._all = keys, values
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._target = target

    def use(self, rows: int) -> None:
        """Continue with the first rows."""
        self.keys, self.values = (part[:rows] for part in self._all)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the slots already exist."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states [N, heads, T, D] to the target slots; returns those of all slots."""
        places = self._target.rows, self._target.slots
        self.keys.transpose(1, 2).index_put_(places, key_states.transpose(1, 2))
        self.values.transpose(1, 2).index_put_(places, value_states.transpose(1, 2))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return self._target.slots[0, 0]  # type: ignore[return-value]  # a tensor, as in StaticLayer: no sync

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class SlotCache(Cache):  # type: ignore[misc]
    """Fixed slots for all rows and layers of a model; takes over the cache that prefill left.

    A forward pass takes the first rows: all at first, then half as many when these have room for
    the live ones, and so on. Rows that have ended stay as padding, which fills slots behind theirs.

    Args:
        like: a filled cache. Its layers give the number and the size of the heads.
        rows: maximum number of rows of a call.
        capacity: number of slots per row and layer.
        compiled: whether the forward pass is compiled. Layers then share no block, and rows stay.

    Attributes:
        rows, capacity: as given.
        device: the device of the first layer.
        bytes_per_slot: memory of one slot in all layers, in bytes.
        size: number of rows that a forward pass takes.
        places: the places of the live rows among them.
        ends: int64[rows], the number of live slots at each place.
        target: the slots that the next forward pass writes.
        beside: (tensor, dimension) pairs, the tensors whose entries move with the rows.
    """

    def __init__(self, like: Any, rows: int, capacity: int, compiled: bool = False) -> None:
        self.rows, self.capacity, self._compiled = rows, capacity, compiled
        self.ends: NDArray[np.int64] = np.zeros(rows, np.int64)
        self.beside: list[tuple[torch.Tensor, int]] = []
        kinds = [kind(part) for part in states(like)]
        self._blocks: list[torch.Tensor] = []
        views = [torch.empty(0)] * len(kinds)
        for places in groups(kinds, joined=not compiled):
            (heads, width), dtype, device = kinds[places[0]]
            size = (len(places), rows, heads, capacity, width)
            block = torch.zeros(size, dtype=dtype, device=device)
            self._blocks.append(block)
            for index, place in enumerate(places):
                views[place] = block[index]
        self.bytes_per_slot = sum(block[:, 0, :, 0].nbytes for block in self._blocks)
        self.device, self.target = kinds[0][2], Target()
        self._numbers = torch.arange(rows, device=self.device)[:, None]
        pairs = zip(views[::2], views[1::2], strict=True)
        super().__init__(layers=[SlotLayer(*pair, self.target) for pair in pairs])
        self._begin(rows)

    def _begin(self, rows: int) -> None:
        """Begin a call with this number of rows."""
        self._live = list(range(rows))
        self._place_of = list(range(rows))
        self._use(rows)

    def _use(self, size: int) -> None:
        """Make forward passes take the first rows only."""
        self.size = size
        self.places = [self._place_of[row] for row in self._live]
        self.target.rows = self._numbers[:size]
        for layer in self.layers:
            layer.use(size)

    @property
    def sizes(self) -> list[int]:
        """The numbers of rows that forward passes of this call take, as rows end."""
        most = len(self._place_of)
        steps = [] if self._compiled else [1 << n for n in range((most - 1).bit_length())]
        return [most, *reversed(steps)]

    @property
    def bytes(self) -> int:
        """Memory of all slots, in bytes."""
        return self.rows * self.capacity * self.bytes_per_slot

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64[n], the number of live slots of each live row."""
        return self.ends[self.places]

    def fits(self, like: Any) -> bool:
        """Whether texts of another cache can be loaded: all shapes, dtypes and devices match."""
        return [kind(part) for part in states(self)] == [kind(part) for part in states(like)]

    def load(self, source: Any, length: int) -> None:
        """Copy texts of `length` tokens; a sliding-window layer has only their last tokens."""
        self._begin(row_count(source))
        self.ends[: self.size] = length
        for layer, old in zip(self.layers, decoder_cache(source).layers, strict=True):
            held = min(old.keys.shape[2], length)
            layer.keys[:, :, length - held : length] = old.keys[:, :, :held]
            layer.values[:, :, length - held : length] = old.values[:, :, :held]

    def continue_from(self, old: SlotCache) -> None:
        """Copy everything from a cache with as many rows and fewer slots."""
        for block, smaller in zip(self._blocks, old._blocks, strict=True):
            block[:, :, :, : old.capacity] = smaller
        self.ends[:] = old.ends
        self._live, self._place_of = old._live, old._place_of
        self._use(old.size)

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        """Keep some slots of each live row that the last forward pass filled; drop the others.

        Args:
            kept: for each live row the ascending offsets of the slots to keep, starting at 0.
        """
        keep_paths(self._blocks, kept, self.places, self.lengths.tolist())
        self.ends[self.places] += [len(offsets) for offsets in kept]

    def cut(self, lengths: Sequence[int]) -> None:
        """Keep the first slots of each live row, these numbers of them; drop the others."""
        self.ends[self.places] = lengths

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these of the live rows only, in this order."""
        self._live = [self._live[row] for row in rows]
        places = [self._place_of[row] for row in self._live]
        size = min(size for size in self.sizes if size >= len(rows))
        ahead = [place for place in places if place >= size]
        free = sorted(set(range(size)) - set(places))[: len(ahead)]
        self._move([*ahead, *free], [*free, *ahead])
        self._use(size)

    def restore(self) -> None:
        """Continue with all rows of the call, in their first order."""
        self._live = list(range(len(self._place_of)))
        pairs = zip(self._place_of, self._live, strict=True)
        moves = [(place, row) for place, row in pairs if place != row]
        self._move([place for place, _ in moves], [row for _, row in moves])
        self._use(len(self._live))

    def _move(self, sources: list[int], targets: list[int]) -> None:
        """Move whole rows from places to others: a permutation of them."""
        if not sources:
            return
        new = dict(zip(sources, targets, strict=True))
        self._place_of = [new.get(place, place) for place in self._place_of]
        self.ends[targets] = self.ends[sources]
        for tensor, dim in (*((block, 1) for block in self._blocks), *self.beside):
            taken = tensor.index_select(dim, torch.tensor(sources, device=tensor.device))
            tensor.index_copy_(dim, torch.tensor(targets, device=tensor.device), taken)


def keep_paths(
    blocks: Sequence[torch.Tensor],
    kept: Sequence[Sequence[int]],
    rows: Sequence[int],
    starts: Sequence[int],
) -> None:
    """Keep some slots of each row by moving them together: one gather and one scatter per block.

    Args:
        blocks: [tensors, rows, heads, slots, D].
        kept: for each of `rows` the ascending offsets of the slots to keep, starting at 0.
        starts: for each of `rows` the slot at offset 0.
    """
    moves = [
        (row, start + offset, start + place)
        for row, start, offsets in zip(rows, starts, kept, strict=True)
        for place, offset in enumerate(offsets)
        if offset != place
    ]
    if not moves:
        return
    for block in blocks:
        row, source, target = torch.tensor(moves, device=block.device).unbind(1)
        slots = block.permute(1, 3, 0, 2, 4)
        slots.index_put_((row, target), slots[row, source])


def states(cache: Any) -> list[torch.Tensor]:
    """Keys and values of all layers: [keys, values, keys, values, ...]."""
    return [part for layer in decoder_cache(cache).layers for part in (layer.keys, layer.values)]


def row_count(cache: Any) -> int:
    """The number of rows of a filled cache."""
    return len(states(cache)[0])


def kind(states: torch.Tensor) -> tuple[tuple[int, int], torch.dtype, torch.device]:
    """((heads, size of a head), dtype, device)."""
    _, heads, _, width = states.shape
    return (heads, width), states.dtype, states.device


def groups(kinds: list[Any], joined: bool) -> list[list[int]]:
    """Indices of the keys and values that share a block, for each block."""
    if not joined:
        return [[place] for place in range(len(kinds))]
    return [
        [place for place, other in enumerate(kinds) if other == shape]
        for shape in dict.fromkeys(kinds)
    ]
