"""The eager engine: launch by launch, on any cache that can be rolled back, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.verify.attention import FoldedHeads
from hf_specplug.verify.cache import Rollback, capacity
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.masks import TreeMasks
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.support import PER_TOKEN, is_generic


class EagerEngine(Engine):
    """Checks trees of any size, on the cache that `generate` prepared."""

    def _start(self) -> None:
        self._template: dict[str, Any] | None = None
        self._width = 0
        self._heads = FoldedHeads(self._model)
        self._capacity = capacity(self.cache)
        self._rollback = Rollback(self.cache)
        self._undo.callback(self._rollback.close)
        self.drafts = self._rollback.can_roll_back()
        if not self.drafts:
            self.trouble = "the cache turned out to hold a recurrent state: nothing was drafted"
            self._rollback.close()
        if self._tree:
            self._prepare_masks()

    @property
    def room(self) -> int:
        return self._capacity - self._past - 1

    def _prepare_masks(self) -> None:
        text = self._model.config.get_text_config(decoder=True)
        prompt_mask = self._prompt_mask
        self._masks = TreeMasks(
            self._model.config,
            self.cache,
            self._model.dtype,
            text._attn_implementation == "eager",
            self._device,
            None if prompt_mask is None else prompt_mask[:, : self._past],
        )

    def _check(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> Outputs:
        width = len(tokens)
        mask: Any = None
        if width > 1 and self._tree:
            mask = self._masks.build(seen, depths, self._past)
        elif self._prompt_mask is not None:
            ones = self._prompt_mask.new_ones((1, self._past + width - self._prompt_mask.shape[1]))
            mask = torch.cat([self._prompt_mask, ones], dim=1)
        inputs = self._inputs(tokens, depths, mask)
        with self._heads, self._watched():
            outputs = self._model(**inputs, return_dict=True)
        self._past += width
        self._width = width
        return Outputs(outputs.logits[0], states=self._states(width))

    def _inputs(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], mask: Any
    ) -> dict[str, Any]:
        model = self._model
        ids = torch.from_numpy(tokens)[None].to(self._device)
        positions = None
        if self._shape is not None:
            offsets = torch.from_numpy(depths + (self._first + self._past - self._first_past))
            positions = offsets.to(self._device).expand(*self._shape, -1)
        elif self._starts is not None:
            offsets = torch.from_numpy(depths + (self._past - self._first_past))
            positions = self._starts + offsets.to(self._starts.device)
        if self._template is None:
            inputs = self._prepare(ids, positions)
            if is_generic(model) and not any(key in inputs for key in PER_TOKEN):
                self._template = dict(inputs)
        else:
            inputs = dict(self._template)
            inputs[self._ids_key] = ids
            if positions is not None and self._position_key is not None:
                inputs[self._position_key] = positions
        if mask is not None:
            inputs[self._mask_key] = mask
        return inputs

    def keep(self, visited: Sequence[int]) -> None:
        if self.drafts:
            self._rollback.keep(self._width, visited)
        self._past += len(visited) - self._width

    def warm(self, max_length: int) -> None:
        self._warm_weights()
