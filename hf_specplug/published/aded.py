"""ADED (Liu et al. 2024, arXiv 2407.12021) as published: a tree search by random rollouts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import Context, Int32, Step
from hf_specplug.drafters.successor_table import SuccessorTable
from hf_specplug.drafters.trigram import TrigramDrafter
from hf_specplug.kernels import aded as kernels
from hf_specplug.kernels import trigram
from hf_specplug.published.paper import OneDrafterSearch
from hf_specplug.tree import DraftTree

RECENT = 16
"""The tri-grams of the last so many tokens are raised in every step."""

_ROWS = 1 << 14  # pairs of tokens of a text that can be raised


class Aded(OneDrafterSearch):
    """Searches the tri-gram distribution by 150 random rollouts and drafts the most visited paths.

    The distribution is the corpus's, plus 0.04 for each time that a tri-gram was among the last 16
    tokens of a step (the drafter "trigram" mixes two distributions instead). A probability can thus
    grow to `kernels.aded.MOST`, and a tri-gram counts again in every step while it is recent. What
    is added is forgotten after the request; the authors' code keeps it as long as the process runs.

    The random numbers come from a generator of its own, with the same seed in every request, so
    that drafts are reproducible. The search is compiled once for each number of shards.
    """

    uses: ClassVar[tuple[str, ...]] = ("trigram",)

    def _prepare(self) -> None:
        super()._prepare()
        self._rng = np.random.default_rng(0)
        self._nodes = np.empty((kernels.CAPACITY, kernels.ROLLOUT_COLUMNS), np.int32)
        self._numbers = np.empty((kernels.CAPACITY, 2))

    def begin(self, context: Context) -> None:
        super().begin(context)
        self._context = context
        self._added = SuccessorTable(_ROWS, trigram.SUCCESSORS, float("inf"))

    def observe(self, step: Step, patient: bool | None = None) -> None:
        """Tri-grams are raised when a tree is grown."""

    def _tree(
        self, drafter: TrigramDrafter, source: int, root: int, limit: int, depth: int
    ) -> DraftTree:
        recent = self._context.tokens[-RECENT:]
        self._raise(recent)
        before = int(recent[-2]) if len(recent) > 1 else -1
        return self._drawn(drafter, source, before, root, limit, depth)

    def _raise(self, recent: Int32) -> None:
        """Count the tri-grams of the last tokens once more."""
        table = self._added
        table.make_room(len(recent))
        tail = np.full(2, -1, np.int32)
        table.clock = trigram.learn(*table.arrays, table.clock, tail, recent, 1.0)

    def _drawn(
        self, drafter: TrigramDrafter, source: int, before: int, root: int, limit: int, depth: int
    ) -> DraftTree:
        table = self._added
        state = (
            tuple(drafter.shards) or (_nothing(),),
            (table.keys, table.ids, table.weights),
            before,
            root,
        )
        nodes, numbers = self._nodes, self._numbers
        size = kernels.search(*state, self._rng, nodes, numbers)
        out, probs = np.empty((limit, 2), np.int32), np.empty(limit, np.float32)
        number = kernels.choose(*state, nodes, numbers, size, limit, depth, out, probs)
        tokens, parents = np.ascontiguousarray(out[:number].T)
        sources = np.full(number, source, np.uint16)
        return DraftTree(tokens, parents, probs[:number].clip(1e-6, 1.0), sources)


def _nothing() -> tuple[tuple[np.ndarray, ...], int]:
    """An empty shard: numba needs one to know the types of a shard's arrays."""
    dtypes = (np.uint32, np.uint16, np.uint32, np.uint32, np.uint16, np.uint16)
    return tuple(np.zeros(0, dtype) for dtype in dtypes), 0
