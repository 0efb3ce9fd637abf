"""The static engine: trees padded to a few widths, on a KV cache with a fixed number of slots."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug import forking
from hf_specplug.hf import batches
from hf_specplug.hf.cache import append_slots
from hf_specplug.hf.call import Call
from hf_specplug.hf.compiling import compile_config
from hf_specplug.hf.plan import TREE, CallPlan
from hf_specplug.hf.positions import position_argument
from hf_specplug.hf.support import has_static_shapes
from hf_specplug.tree import DraftTree
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.registry import EngineFactory, register_engine
from hf_specplug.verify.row_engine import RowEngine
from hf_specplug.verify.static_forward import StaticForward

PADDED_WIDTHS = (1, 8, 16, 32, 64)
"""Padded widths, in tokens per forward pass; a larger tree is padded to the next power of two."""

SLOTS_AHEAD = (
    512  # cache slots allocated at first for generated tokens; the cache grows when needed
)


@register_engine
class StaticFactory(EngineFactory):
    """Makes static engines. They share one forward pass, which one call at a time can use.

    Attributes:
        forward: the shared forward pass, with its KV cache and CUDA graphs.
    """

    name = "static"
    priority = 1
    modes = (TREE,)
    widths = PADDED_WIDTHS

    def __init__(self) -> None:
        self.forward = StaticForward()
        self._thread = 0  # thread id of the call that uses `forward`; 0 if none does
        self.lock = threading.RLock()
        forking.register(self)

    def suits(self, call: Call, plan: CallPlan) -> bool:
        return call.rows == 1 and self._can_run(call, plan)

    def _can_run(self, call: Call, plan: CallPlan) -> bool:
        fits = plan.mode == TREE and position_argument(call.model) is not None
        return fits and not self.forward.failure and has_static_shapes(call)

    def limit(self, call: Call, plan: CallPlan) -> CallPlan:
        return plan

    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> StaticEngine:
        if compile_config(call.model, call.config) is not None:
            packed = None
        return StaticEngine(call, plan, self.forward, packed, layer)

    def acquire(self) -> bool:
        with self.lock:
            if self._thread:
                return False
            self._thread = threading.get_ident()
            return True

    def release(self) -> None:
        self._thread = 0

    def after_fork(self) -> None:
        """In a forked child: discard a forward pass that a call of another thread was using."""
        if self._thread not in (0, threading.get_ident()):
            self.forward, self._thread = StaticForward(), 0


@register_engine
class StaticRaggedFactory(StaticFactory):
    """Makes static engines of calls with several rows. They share a forward pass of their own."""

    name = "static_ragged"
    priority = 4

    def suits(self, call: Call, plan: CallPlan) -> bool:
        return call.rows > 1 and self._can_run(call, plan) and not batches.unsuited(call)

    def release(self) -> None:
        self.forward.trim()
        super().release()


class StaticEngine(RowEngine):
    """Verifies trees at static shapes and addresses, for CUDA graphs and compiled code.

    The prompt runs as in plain `generate`, on the cache that `generate` prepared. The generated
    tokens of a single row are appended to that cache at the end of the call.

    Args:
        call, plan, packed, layer: those of `Engine`.
        forward: the forward pass that the factory keeps for the next call.
    """

    def __init__(
        self,
        call: Call,
        plan: CallPlan,
        forward: StaticForward,
        packed: PackedLinears | None = None,
        layer: int | None = None,
    ) -> None:
        super().__init__(call, plan, packed, layer)
        self._forward = forward
        self._rows = call.rows
        self._before = forward.captured, forward.seconds

    def _start(self) -> None:
        starts, position_key = self._starts, self._position_key
        if starts is None or position_key is None:
            raise TypeError(f"{type(self._model).__name__} takes no positions, which trees need")
        ids = torch.zeros((self._rows, 1), dtype=torch.int64, device=self._device)
        constants = self._prepare(ids, ids[0])
        names = (self._ids_key, position_key, self._mask_key)
        for name in (*names, "past_key_values"):
            constants.pop(name, None)
        ahead = min(SLOTS_AHEAD, max(0, self._config.max_length - self._past)) + PADDED_WIDTHS[-1]
        self._forward.open(
            self._model,
            self.cache,
            self._past,
            ahead,
            starts,
            names,
            constants,
            compile_config(self._model, self._config),
            self._hook,
        )
        mask = self._prompt_mask
        self._forward.masks.pad(None if mask is None else mask[:, : self._past])
        if self._rows == 1:
            self._undo.callback(self.hand_back)
        elif not self.outlives:
            self.cache.reset()  # frees the prompts' slots

    @property
    def free_slots(self) -> int:
        return 1 << 30

    @property
    def captured(self) -> tuple[int, float]:
        count, seconds = self._before
        return self._forward.captured - count, self._forward.seconds - seconds

    def _verify_rows(
        self,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        counts: Sequence[int],
    ) -> list[Outputs]:
        width, cache = padded(tokens.shape[1]), self._forward.cache
        if int(cache.ends[: cache.size].max()) + width > cache.capacity:
            self._forward.grow(self._model)
        outputs = self._forward.run(self._model, width, tokens, depths, seen, counts)
        if self._forward.failure:
            self.degraded_reason = f"its forward pass cannot be captured ({self._forward.failure})"
        return outputs

    def keep_rows(self, visited: Sequence[Sequence[int]]) -> None:
        self._forward.cache.keep(visited)

    def select(self, rows: Sequence[int]) -> None:
        self._forward.cache.select(rows)

    def restore(self) -> None:
        self._forward.cache.restore()

    def cut(self, lengths: Sequence[int]) -> None:
        self._forward.cache.cut(lengths)

    def hand_back(self) -> None:
        slots = self._forward.cache
        append_slots(slots, self.cache, self._past, int(slots.lengths[0]))

    def warm(self, max_length: int) -> None:
        self._warm_weights()
        while self._forward.cache.capacity < max_length + PADDED_WIDTHS[-1]:
            self._forward.grow(self._model)
        for rows in self._forward.cache.sizes:
            self.select(range(rows))
            for width in PADDED_WIDTHS:
                chain = DraftTree.path(np.zeros(width - 1, np.int32))
                self.step_rows([0] * rows, [chain] * rows)[0].wait()


def padded(count: int) -> int:
    """The padded width at which `count` tokens are verified."""
    for width in PADDED_WIDTHS:
        if width >= count:
            return width
    return 1 << (count - 1).bit_length()
