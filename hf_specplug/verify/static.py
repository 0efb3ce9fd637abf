"""The static engine: trees padded to a few widths, on a cache of fixed slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from hf_specplug.hf.support import Support
from hf_specplug.tree import DraftTree
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.static_forward import StaticForward

PADDED_WIDTHS = (1, 8, 16, 32, 64)
"""Tokens per forward pass; a larger tree is padded to the next power of two."""

_AHEAD = 512  # slots for text to come, at first; there are more when they are needed


class StaticEngine(Engine):
    """Checks trees where nothing moves, so that CUDA graphs and compiled code can be used.

    The prompt runs as in plain `generate`, on the cache that it prepared; what is generated is
    appended to that cache at the end.

    Args:
        forward: kept by the caller for the next call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
        support: Support,
        forward: StaticForward,
        packed: PackedLinears | None = None,
    ) -> None:
        super().__init__(model, config, model_kwargs, support, packed)
        self._forward = forward
        self._before = forward.prepared, forward.seconds

    def _start(self) -> None:
        self._base = self._delivered = self._past
        starts, position_key = self._starts, self._position_key
        if starts is None or position_key is None:
            raise TypeError(f"{type(self._model).__name__} takes no positions, which trees need")
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        constants = self._prepare(ids, ids[0])
        names = (self._ids_key, position_key, self._mask_key)
        for name in (*names, "past_key_values"):
            constants.pop(name, None)
        ahead = min(_AHEAD, max(0, self._config.max_length - self._past)) + PADDED_WIDTHS[-1]
        self._forward.open(
            self._model,
            self.cache,
            self._past,
            ahead,
            starts,
            names,
            constants,
            compile_config(self._model, self._config),
            self.hidden_states,
        )
        self._undo.callback(self._append_slots)
        mask = self._prompt_mask
        self._forward.masks.pad(None if mask is None else mask[:, : self._past])

    @property
    def room(self) -> int:
        return 1 << 30

    @property
    def prepared(self) -> tuple[int, float]:
        count, seconds = self._before
        return self._forward.prepared - count, self._forward.seconds - seconds

    def _check(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> Outputs:
        width = padded(len(tokens))
        if self._past + width > self._forward.cache.capacity:
            self._forward.grow(self._model, self._past)
        self._base = self._past
        offset = self._past - self._first_past
        outputs = self._forward.run(self._model, width, tokens, depths, seen, self._past, offset)
        if self._forward.failure:
            self.degraded_reason = f"its forward pass cannot be captured ({self._forward.failure})"
        return outputs

    def keep(self, visited: Sequence[int]) -> None:
        self._forward.cache.keep(self._base, visited)
        self._past = self._base + len(visited)

    def warm(self, max_length: int) -> None:
        self._warm_weights()
        while self._forward.cache.capacity < max_length + PADDED_WIDTHS[-1]:
            self._forward.grow(self._model, self._past)
        for width in PADDED_WIDTHS:
            self.step(0, DraftTree.path(np.zeros(width - 1, np.int32))).wait()

    def _append_slots(self) -> None:
        self._forward.cache.append_slots(self.cache, self._delivered, self._past)


def padded(count: int) -> int:
    """The width at which `count` tokens are checked."""
    for width in PADDED_WIDTHS:
        if width >= count:
            return width
    return 1 << (count - 1).bit_length()


def compile_config(model: PreTrainedModel, config: GenerationConfig) -> CompileConfig | None:
    """How to compile, if the user asked for it: one shape at a time, not shapes in general."""
    asked = config.compile_config
    if asked is None or (model.device.type == "cpu" and not asked._compile_all_devices):
        return None
    one = CompileConfig(**{**asked.to_dict(), "dynamic": False})
    one._compile_all_devices = asked._compile_all_devices
    return one
