"""The engine of recurrent states: chains on caches that can return to a kept state.

A recurrent state cannot drop rejected tokens. It is kept before each drafted forward pass, and put
back if a token is rejected. The accepted tokens of that pass then lead the input of the next one,
so that no forward pass is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf.batches import outlives
from hf_specplug.hf.cache import holds_state
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, CallPlan
from hf_specplug.hf.states import KeptStates, may_hold_state
from hf_specplug.verify.eager import EagerEngine, EagerFactory
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.registry import register_engine


@register_engine
class RecurrentFactory(EagerFactory):
    """Makes engines for caches whose layers may hold recurrent states."""

    name = "recurrent"
    priority = 1

    def suits(self, call: Call, plan: CallPlan) -> bool:
        return super().suits(call, plan) and may_hold_state(call.cache)

    def limit(self, call: Call, plan: CallPlan) -> CallPlan:
        if call.cache is not None:
            plan = super().limit(call, plan)
        return plan.limited(CHAIN, "a recurrent state follows one chain only")

    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> RecurrentEngine:
        return RecurrentEngine(call, plan, packed, layer)


class RecurrentEngine(EagerEngine):
    """Verifies chains, and replays the accepted tokens of a chain that was not wholly accepted.

    Layers of convolutions without a recurrent state are rolled back as the eager engine does.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._replayed = np.empty(0, np.int64)  # tokens of the text that the cache does not hold
        self._row: NDArray[np.int64] | None = None  # the last input, until `keep` decides on it

    def _prepare_rollback(self) -> None:
        self._kept = KeptStates(self._working)
        self._recurrent = holds_state(self._working)
        if not self._recurrent:
            super()._prepare_rollback()

    @property
    def replays(self) -> int | None:
        return len(self._replayed) if self._recurrent else None

    @property
    def free_slots(self) -> int:
        return super().free_slots - len(self._replayed)

    def _verify(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> Outputs:
        if not self._recurrent:
            return super()._verify(tokens, depths, seen)
        logits = self._run(np.concatenate([self._replayed, tokens]))
        states = self._states(len(logits))
        first = len(self._replayed)
        return Outputs(logits[first:], states=None if states is None else states[first:])

    def _run(self, row: NDArray[np.int64]) -> torch.Tensor:
        """Run a row of tokens; returns logits [T, V]."""
        self._before = self._past
        if len(row) > 1:
            self._kept.keep()
            self._row = row
        depths = np.arange(len(row), dtype=np.int64)
        return self._forward(row, depths, np.empty((0, 0), np.bool_))

    def keep(self, visited: Sequence[int]) -> None:
        if not self._recurrent:
            super().keep(visited)
            return
        row, self._row = self._row, None
        if row is None:
            return
        count = len(self._replayed) + len(visited)
        if count == len(row):
            self._replayed = row[:0]
            return
        self._put_back()
        self._replayed = row[:count]

    def _put_back(self) -> None:
        self._kept.put_back()
        self._past = self._before

    def close(self) -> None:
        try:
            if self._row is not None:  # a forward pass did not end, or nobody decided on it
                self._row = None
                self._put_back()
            if len(self._replayed) and outlives(self._config, self.cache):
                with self._packed or nullcontext():
                    self._run(self._replayed)
        finally:
            super().close()
