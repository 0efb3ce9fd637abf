"""The eager engine: ordinary forward passes on any device, on any cache that can be rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf.attention import FoldedHeads, implementation
from hf_specplug.hf.cache import (
    Rollback,
    append_slots,
    capacity,
    growing_copy,
    overwrites,
    rollback,
)
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import PLAIN, CallPlan
from hf_specplug.hf.positions import SlotPositions, last_position
from hf_specplug.hf.support import is_generic, left_to_compiled_generate
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.masks import TreeMasks
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.registry import EngineFactory, register_engine


@register_engine
class EagerFactory(EngineFactory):
    """Makes eager engines. They suit every call of one row, and keep nothing between calls."""

    name = "eager"

    def suits(self, call: Call, plan: CallPlan) -> bool:
        return call.rows == 1

    def limit(self, call: Call, plan: CallPlan) -> CallPlan:
        if left_to_compiled_generate(call):
            return plan.limited(PLAIN, "a compiled static cache is left to transformers")
        return plan.limited(*self._rollback(call.cache))

    @staticmethod
    def _rollback(cache: Any) -> tuple[str, str]:
        """How the engine can roll a cache back: see `rollback`."""
        return rollback(cache)

    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> EagerEngine:
        return EagerEngine(call, plan, packed, layer)


class EagerEngine(Engine):
    """Verifies trees of any size on the cache that `generate` prepared."""

    def _start(self) -> None:
        self._template: dict[str, Any] | None = None
        self._width = 0
        self._heads = FoldedHeads(self._model)
        self._slots = SlotPositions(self._model)
        self._undo.callback(self._slots.close)
        self._working = self.cache
        if overwrites(self.cache, self._config.max_length):
            start = self._past
            self._working = self._kwargs["past_key_values"] = growing_copy(self.cache, start)
            self._undo.callback(lambda: append_slots(self._working, self.cache, start, self._past))
        self._capacity = min(capacity(self._working), last_position(self._model) + 1)
        self._prepare_rollback()
        if self._tree:
            self._prepare_masks()

    def _prepare_rollback(self) -> None:
        self._rollback = Rollback(self._working)
        self._undo.callback(self._rollback.close)

    @property
    def free_slots(self) -> int:
        return self._capacity - self._past - 1

    def _prepare_masks(self) -> None:
        prompt_mask = self._prompt_mask
        self._masks = TreeMasks(
            self._model.config,
            self._working,
            self._model.dtype,
            implementation(self._model) == "eager",
            self._device,
            None if prompt_mask is None else prompt_mask[:, : self._past],
            self._config.max_length,
        )

    def _verify(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> Outputs:
        logits = self._forward(tokens, depths, seen)
        return Outputs(logits, states=self._states(len(tokens)))

    def _forward(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> torch.Tensor:
        """Run a forward pass over T tokens, as `_verify`; returns logits [T, V]."""
        width = len(tokens)
        branches = width > 1 and self._tree
        inputs = self._inputs(tokens, depths, branches)
        if branches:
            inputs[self._mask_key] = self._masks.build(seen, depths, self._past)
        slots = self._slots.at(depths, self._past) if branches else nullcontext()
        with self._heads, slots, self._watched():
            outputs = self._model(**inputs, return_dict=True)
        self._past += width
        self._width = width
        logits: torch.Tensor = outputs.logits[0]
        return logits

    def _inputs(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], branches: bool
    ) -> dict[str, Any]:
        """The arguments of a forward pass, with the mask of a chain."""
        model = self._model
        ids = self._on_device(tokens[None])
        offsets = depths + (self._past - self._first_past)
        mask = None
        if self._prompt_mask is not None and not (branches and self._template):
            ones = self._prompt_mask.new_ones(
                (1, self._past + len(tokens) - self._prompt_mask.shape[1])
            )
            mask = torch.cat([self._prompt_mask, ones], dim=1)
        if self._template is None:
            inputs = self._prepare(ids, self._on_device(offsets), mask)
            if is_generic(model) and not self._per_token:
                self._template = {**inputs, self._mask_key: None}
        else:
            inputs = {**self._template, self._ids_key: ids}
            if mask is not None:
                inputs[self._mask_key] = mask
        if self._position_key is not None and (branches or not self._counts):
            if self._shape is not None:
                positions = self._on_device(offsets + self._first)
                inputs[self._position_key] = positions.expand(*self._shape, -1)
            elif self._starts is not None:
                inputs[self._position_key] = self._starts + self._on_device(offsets)
        return inputs

    def _on_device(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def keep(self, visited: Sequence[int]) -> None:
        self._rollback.keep(self._width, visited)
        self._past += len(visited) - self._width

    def warm(self, max_length: int) -> None:
        self._warm_weights()
