"""The aligned engine: one forward pass over a batch, with a chain of its own for each row.

For models that can verify no trees. Chains are padded to the longest one; the texts of all rows
end at the same slot (see `AlignedCache`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf import batches
from hf_specplug.hf.aligned_cache import AlignedCache
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, CallPlan
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.ragged import RaggedEngine, RaggedFactory
from hf_specplug.verify.registry import register_engine


@register_engine
class AlignedFactory(RaggedFactory):
    """Makes the engines of batches that are drafted as chains. It keeps nothing between calls."""

    name = "aligned"
    priority = 3
    modes = (CHAIN, PLAIN)

    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> AlignedEngine:
        return AlignedEngine(call, plan, packed, layer)


class AlignedEngine(RaggedEngine):
    """Verifies one chain per row of a batch."""

    chains = True

    def _start(self) -> None:
        mask = self._prompt_mask
        shown = None if mask is None else mask[:, : self._past]
        self._aligned = AlignedCache(self.cache, self._past, shown)
        self._limit: int = max(self._config.max_length, batches.slots_known(self._model))
        self._begin(self._aligned)

    @property
    def free_slots(self) -> int:
        longest = int(self._aligned.lengths.max())
        return self._limit - longest - 1

    def _verify_rows(
        self,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        counts: Sequence[int],
    ) -> list[Outputs]:
        steps = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
        mask = self._aligned.mask(tokens.shape[1]).to(self._device)
        ids = torch.from_numpy(tokens).to(self._device)
        inputs = self._prepare(ids, torch.from_numpy(steps[0]), mask)
        inputs.update(self._positions(steps))
        with self._heads, self._watched():
            outputs = self._model(**inputs, return_dict=True)
        return self._split(outputs.logits, counts)

    def keep_rows(self, visited: Sequence[Sequence[int]]) -> None:
        self._aligned.keep([len(own) for own in visited])

    def cut(self, lengths: Sequence[int]) -> None:
        self._aligned.keep((lengths - self._aligned.lengths).tolist())
