"""The engine of recurrent layers that verify trees: no copy of a state, and no replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf.cache import Rollback
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import TREE, CallPlan
from hf_specplug.hf.seams import switches
from hf_specplug.hf.states import KeptStates, may_hold_state
from hf_specplug.hf.tree_states import TreeStates, of_text, rollback
from hf_specplug.verify.eager import EagerEngine, EagerFactory
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.registry import register_engine


@register_engine
class RecurrentTreeFactory(EagerFactory):
    """Makes engines for models whose recurrent layers all compute a gated delta rule or Mamba2.

    Chains are left to the engine of kept states.
    """

    name = "recurrent tree"
    priority = 2
    modes = (TREE,)

    def suits(self, call: Call, plan: CallPlan) -> bool:
        return (
            super().suits(call, plan)
            and plan.mode == TREE
            and call.cache is not None
            and may_hold_state(call.cache)
            and bool(switches(call.model))
        )

    @staticmethod
    def _rollback(cache: Any) -> tuple[str, str]:
        return rollback(cache)

    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> RecurrentTreeEngine:
        return RecurrentTreeEngine(call, plan, packed, layer)


class RecurrentTreeEngine(EagerEngine):
    """Verifies trees; layers of keys and values are rolled back as the eager engine does."""

    def _prepare_rollback(self) -> None:
        keys = of_text(self._working)
        self._kept_keys = KeptStates(keys)
        self._rollback = Rollback(keys)
        self._undo.callback(self._rollback.close)
        self._tree_states = TreeStates(self._model, self._working)

    def _forward(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> torch.Tensor:
        if len(tokens) == 1:
            return super()._forward(tokens, depths, seen)
        self._kept_keys.keep()
        try:
            with self._tree_states.at(seen):
                return super()._forward(tokens, depths, seen)
        except BaseException:  # the cache may outlive the call
            self._kept_keys.put_back()
            raise

    def keep(self, visited: Sequence[int]) -> None:
        self._tree_states.keep(visited)
        super().keep(visited)

    def close(self) -> None:
        if self._tree_states.pending:  # plain decoding would have run the root, too
            self.keep([0])
        super().close()
