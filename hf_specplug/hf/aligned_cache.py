"""A KV cache whose rows end at the same slot, for models that take distances from cache slots.

Rows that have accepted different numbers of tokens are moved to the right, so that all texts end
together and shorter ones have more padding on the left. The model sees what it sees in plain
`generate` with padded prompts, and needs neither positions nor masks of its own for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache

from hf_specplug.hf.cache import decoder_cache, growing_copy


class AlignedCache(Cache):  # type: ignore[misc]
    """Takes over the cache that prefill left. The next token fills the same slot in all rows.

    Args:
        source: a filled cache. A sliding-window layer has only its last tokens.
        length: number of tokens of the prompt, padding included.
        shown: [N, length], 0 where the prompt is padding; None if there is none.

    Attributes:
        lengths: int64[N], the number of live slots of each row.
    """

    def __init__(self, source: Any, length: int, shown: torch.Tensor | None) -> None:
        super().__init__(layers=growing_copy(decoder_cache(source), length).layers)
        rows = self.layers[0].keys.shape[0]
        self.lengths: NDArray[np.int64] = np.full(rows, length)
        self._shown = np.ones((rows, length), np.int64)
        if shown is not None:
            self._shown[:] = shown.cpu().numpy()
        self._live = list(range(rows))
        self._parked: dict[int, list[torch.Tensor]] = {}

    def mask(self, width: int) -> torch.Tensor:
        """int64[N, slots + width], 0 where a slot is padding of its row, for `width` new tokens."""
        longest, prompt = int(self.lengths.max()), self._shown.shape[1]
        mask = np.ones((len(self.lengths), longest + width), np.int64)
        starts = (longest - self.lengths).tolist()
        for row, start, index in zip(mask, starts, self._live, strict=True):
            row[:start] = 0
            row[start : start + prompt] = self._shown[index]
        return torch.from_numpy(mask)

    def keep(self, counts: Sequence[int]) -> None:
        """Keep the first tokens of each row's last forward pass: these numbers of them."""
        ends = int(self.lengths.max()) + np.array(counts)
        self.lengths = self.lengths + counts
        longest = int(self.lengths.max())
        if (ends == longest).all():
            self._set(lambda part: part[:, :, :longest])
        else:  # what comes before the text of a row is hidden
            places = np.arange(longest) + (ends - longest)[:, None]
            self._move(np.maximum(places, 0))

    def _set(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change the keys and the values [N, heads, slots, D] of all layers."""
        for layer in self.layers:
            layer.keys, layer.values = change(layer.keys), change(layer.values)

    def _move(self, places: NDArray[np.int64]) -> None:
        """Give each row these slots: int64[N, slots]."""
        index = torch.from_numpy(places)[:, None, :, None]

        def gather(part: torch.Tensor) -> torch.Tensor:
            return part.gather(
                2, index.to(part.device).expand(-1, part.shape[1], -1, part.shape[3])
            )

        self._set(gather)

    def select(self, rows: Sequence[int], park: bool = False) -> None:
        """Continue with these rows only, in this order.

        Args:
            park: whether the live slots of the others are kept for `restore`.
        """
        if park:
            self._park(sorted(set(range(len(self._live))) - set(rows)))
        before, chosen = int(self.lengths.max()), torch.tensor(rows)
        self.lengths = self.lengths[list(rows)]
        self._live = [self._live[row] for row in rows]
        first = before - int(self.lengths.max())
        self._set(lambda part: part.index_select(0, chosen.to(part.device))[:, :, first:])

    def _park(self, rows: Sequence[int]) -> None:
        whole = [part for layer in self.layers for part in (layer.keys, layer.values)]
        for row, length in zip(rows, self.lengths[list(rows)].tolist(), strict=True):
            self._parked[self._live[row]] = [part[row, :, -length:].clone() for part in whole]

    def restore(self) -> None:
        """Continue with all rows, in their first order; those that left have been parked."""
        self._park(range(len(self._live)))
        parked = [self._parked[row] for row in sorted(self._parked)]
        self._live, self._parked = list(range(len(parked))), {}
        self.lengths = np.array([parts[0].shape[1] for parts in parked])
        longest = int(self.lengths.max())
        pad = torch.nn.functional.pad
        for index, layer in enumerate(self.layers):
            for place, name in enumerate(("keys", "values")):
                rows = [parts[2 * index + place] for parts in parked]
                whole = [pad(row, (0, 0, longest - row.shape[1], 0)) for row in rows]
                setattr(layer, name, torch.stack(whole))
