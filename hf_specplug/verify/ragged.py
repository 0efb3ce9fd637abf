"""The ragged engine: ordinary forward passes over a batch, with a tree of its own for each row.

Every row has its own slots, positions, mask and accepted length (see `RowCache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf import batches
from hf_specplug.hf.aligned_cache import AlignedCache
from hf_specplug.hf.attention import FoldedHeads, implementation
from hf_specplug.hf.cache import append_slots
from hf_specplug.hf.call import Call
from hf_specplug.hf.encoder_rows import encoder_rows
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE, CallPlan
from hf_specplug.hf.row_cache import RowCache
from hf_specplug.hf.row_positions import RowPositions
from hf_specplug.hf.support import left_to_compiled_generate
from hf_specplug.tree import EMPTY
from hf_specplug.verify.outputs import Outputs, pack
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.registry import EngineFactory, register_engine
from hf_specplug.verify.row_engine import RowEngine
from hf_specplug.verify.row_masks import RowMasks


@register_engine
class RaggedFactory(EngineFactory):
    """Makes the engines of calls with several rows. It keeps nothing between calls."""

    name = "ragged"
    priority = 2
    modes = (TREE, PLAIN)

    def suits(self, call: Call, plan: CallPlan) -> bool:
        return call.rows > 1 and plan.mode == self.modes[0]

    def limit(self, call: Call, plan: CallPlan) -> CallPlan:
        reason = batches.unsuited(call, chain=CHAIN in self.modes)
        if not reason and left_to_compiled_generate(call):
            reason = "a compiled static cache is left to transformers"
        return plan.limited(PLAIN, reason) if reason else plan

    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> RaggedEngine:
        return RaggedEngine(call, plan, packed, layer)


class RaggedEngine(RowEngine):
    """Verifies trees of any size on slots that grow with the texts."""

    def _start(self) -> None:
        self._counting = RowPositions(self._model, self._past)
        self._undo.callback(self._counting.close)
        self._filled = RowCache(self.cache, self._past)
        self._begin(self._filled)
        rows, mask = len(self._live), self._prompt_mask
        self._masks = RowMasks(
            self._model.config,
            self._model.dtype,
            implementation(self._model) == "eager",
            self._device,
            None if mask is None else mask[:, : self._past],
            rows,
            self._config.max_length,
        )
        zeros = torch.zeros((rows, 1), dtype=torch.int64, device=self._device)
        self._filled.aim(1)
        self._template = self._prepare(zeros, zeros)

    def _begin(self, slots: RowCache | AlignedCache) -> None:
        """Continue on these slots instead of those of the call's cache."""
        self._slots = slots
        self._live = list(range(len(slots.lengths)))
        self._heads = FoldedHeads(self._model)
        encoder = self._encoder = encoder_rows(self.cache, slots, self._kwargs)
        self._kwargs["past_key_values"] = slots if encoder is None else encoder.cache
        if not self.outlives:
            self.cache.reset()  # frees the prompt's slots
        self._starts_of_all = None
        if self._starts is not None:
            self._starts_of_all = self._starts.expand(len(self._live), 1)
        self._row_starts = self._starts_of_all

    @property
    def free_slots(self) -> int:
        return self._counting.room - 1

    def _verify_rows(
        self,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        counts: Sequence[int],
    ) -> list[Outputs]:
        slots = self._filled
        inputs = {
            **self._template,
            **self._positions(depths),
            self._ids_key: torch.from_numpy(tokens).to(self._device),
            self._mask_key: self._masks.build(seen, depths, slots.lengths),
        }
        with self._heads, self._watched(), self._counting.at(depths, slots.lengths) as past:
            slots.aim(tokens.shape[1], past)
            outputs = self._model(**inputs, return_dict=True)
        return self._split(outputs.logits, counts)

    def _positions(self, depths: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The positions [N, T] of tokens at these depths, if the model takes them."""
        if self._position_key is None or self._row_starts is None:
            return {}
        offsets = torch.from_numpy(depths + (self._slots.lengths - self._first_past)[:, None])
        return {self._position_key: self._row_starts + offsets.to(self._device)}

    def _split(self, logits: torch.Tensor, counts: Sequence[int]) -> list[Outputs]:
        """The outputs of each row from `logits` [N, T, V]; `counts`: its number of tokens."""
        packed: Any = [None] * len(counts)
        if logits.device.type != "cpu":
            packed = pack(logits.flatten(0, 1)).view(*logits.shape[:2], -1)
            packed = [part[:count] for part, count in zip(packed, counts, strict=True)]
        found = []
        for row, count in enumerate(counts):
            states = self._states(logits.shape[1], row)
            states = None if states is None else states[:count]
            found.append(Outputs(logits[row, :count], packed[row], states))
        return found

    def keep_rows(self, visited: Sequence[Sequence[int]]) -> None:
        self._filled.keep(visited)

    def select(self, rows: Sequence[int]) -> None:
        self._slots.select(rows, park=self.outlives or self.parks)
        self._use([self._live[row] for row in rows])

    def restore(self) -> None:
        self._slots.restore()
        self._use(range(len(self._slots.lengths)))

    def _use(self, rows: Sequence[int]) -> None:
        """Use what belongs to these rows of the call."""
        self._live = list(rows)
        if not self.chains:
            self._masks.select(self._live)
        if self._starts_of_all is not None:
            self._row_starts = self._starts_of_all[self._live]
        if self._encoder is not None:
            inputs = self._kwargs if self.chains else self._template
            inputs.update(self._encoder.select(self._live))

    def cut(self, lengths: Sequence[int]) -> None:
        self._filled.lengths = np.array(lengths)

    def hand_back(self) -> None:
        append_slots(self._slots, self.cache, self._past, int(self._slots.lengths[0]))

    def warm(self, max_length: int) -> None:
        self._warm_weights()
        rows = len(self._slots.lengths)
        self.step_rows([0] * rows, [EMPTY] * rows)
