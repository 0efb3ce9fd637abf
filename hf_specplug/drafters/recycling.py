"""Token Recycling (Luo et al. 2024, arXiv 2408.08696): the target's likeliest next tokens, reused.

Every forward pass yields the likeliest next tokens after each of its tokens. They are kept in a
matrix with one row per vocabulary entry and proposed when that token occurs again. Unlike in the
paper, probabilities are kept with the ids, and the result does not depend on the order of writes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import TOP_K, Context, Drafter, Frontier, Int32, Step
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.errors import StateError
from hf_specplug.kernels import adjacency

SUCCESSORS = TOP_K
"""Successors kept per token: 8, as in the paper (section 3.1)."""


@register
class RecyclingDrafter(Drafter):
    """Proposes the target's likeliest next tokens at the last occurrence of the same token.

    Evidence: the rank of the token, and its probability.

    Example:
        after a forward pass in which `the` was followed by (cat 0.5, dog 0.3, ...), the tokens cat,
        dog, ... are proposed after every `the` in the text or in the tree.
    """

    name: ClassVar[str] = "recycling"
    needs: ClassVar[frozenset[str]] = frozenset({"topk"})

    def __init__(self) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._allocate(0)
        self._out = np.empty((0, 3), np.int32)

    def _allocate(self, vocab_size: int) -> None:
        self.ids = np.full((vocab_size, SUCCESSORS), -1, np.int32)
        self.probs = np.zeros((vocab_size, SUCCESSORS), np.uint16)

    def begin(self, context: Context) -> None:
        """Start a new request; the matrix is kept unless the vocabulary size changes."""
        if len(self.ids) != context.vocab_size:
            self._allocate(context.vocab_size)

    def for_another_call(self) -> RecyclingDrafter:
        """A drafter that shares the matrix, until one of the two gets another vocabulary."""
        twin = self._sharing()
        twin._out = np.empty((0, 3), np.int32)
        return twin

    def observe(self, step: Step) -> None:
        if step.topk is not None:
            adjacency.update(
                self.ids, self.probs, step.tokens, step.topk.ids, step.topk.probs, step.visited
            )

    @property
    def matrix(self) -> tuple[Int32, NDArray[np.uint16]]:
        """For `kernels.tables`: the matrix."""
        return self.ids, self.probs

    def expand(self, frontier: Frontier) -> Int32:
        rows = len(frontier.nodes) * SUCCESSORS
        if len(self._out) < rows:
            self._out = np.empty((2 * rows, 3), np.int32)
        count = adjacency.expand(
            self.ids, self.probs, frontier.root, frontier.pool, frontier.nodes, self._out
        )
        return self._out[:count]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """`ids` int32[V, 8] and `probs` uint16[V, 8] (units of 1 / 65535)."""
        return {"ids": self.ids, "probs": self.probs}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        ids, probs = state.get("ids"), state.get("probs")
        if ids is None or probs is None or set(state) != {"ids", "probs"}:
            raise StateError(
                f"the state of {self.name!r} has the arrays ids and probs, not {sorted(state)}"
            )
        if ids.dtype != np.int32 or probs.dtype != np.uint16:
            raise StateError(f"ids must be int32 and probs uint16, not {ids.dtype}, {probs.dtype}")
        if ids.shape != probs.shape or ids.ndim != 2 or ids.shape[1] != SUCCESSORS:
            raise StateError(
                f"ids and probs must be [V, {SUCCESSORS}], not {ids.shape}, {probs.shape}"
            )
        if ids.size and (ids.min() < -1 or ids.max() >= len(ids)):
            raise StateError(f"ids must lie in [-1, {len(ids)}), not {ids.min()} to {ids.max()}")
        self.ids, self.probs = ids.copy(), probs.copy()
