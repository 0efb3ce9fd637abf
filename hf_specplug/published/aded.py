"""ADED (Liu et al. 2024, arXiv 2407.12021) as published: a tree search by random rollouts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hf_specplug.drafters.trigram import TrigramDrafter
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.kernels import aded as kernels
from hf_specplug.tree import EMPTY, DraftTree


class Aded(TreeSearch):
    """Searches the tri-gram distribution by 150 random rollouts and drafts the most visited paths.

    It uses the drafter "trigram" alone. The random numbers come from a generator of its own, with
    the same seed in every request, so that drafts are reproducible. The search is compiled once for
    each number of shards.
    """

    drafter: ClassVar[str] = "trigram"

    def _prepare(self) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes = np.empty((kernels.CAPACITY, kernels.ROLLOUT_COLUMNS), np.int32)
        self._numbers = np.empty((kernels.CAPACITY, 2))

    def _published(self, root: int, limit: int, depth: int, chain: bool) -> DraftTree | None:
        if chain:
            return None
        for expert in self._active:
            if isinstance(expert.drafter, TrigramDrafter) and limit > 0 and depth > 0:
                return self._drawn(expert.drafter, 1 << expert.column, root, limit, depth)
        return EMPTY

    def _drawn(
        self, drafter: TrigramDrafter, source: int, root: int, limit: int, depth: int
    ) -> DraftTree:
        table = drafter.table
        state = (
            tuple(drafter.shards) or (_nothing(),),
            (table.keys, table.ids, table.weights),
            int(drafter.tail[0]),
            root,
        )
        nodes, numbers = self._nodes, self._numbers
        size = kernels.search(*state, self._rng, nodes, numbers)
        out, probs = np.empty((limit, 2), np.int32), np.empty(limit, np.float32)
        number = kernels.choose(*state, nodes, numbers, size, limit, depth, out, probs)
        tokens, parents = np.ascontiguousarray(out[:number].T)
        sources = np.full(number, source, np.uint16)
        tree = DraftTree(tokens, parents, probs[:number].clip(1e-6, 1.0), sources)
        return tree.without(self._suppressed) if self._suppressed else tree


def _nothing() -> tuple[tuple[np.ndarray, ...], int]:
    """An empty shard: numba needs one to know the types of a shard's arrays."""
    dtypes = (np.uint32, np.uint16, np.uint32, np.uint32, np.uint16, np.uint16)
    return tuple(np.zeros(0, dtype) for dtype in dtypes), 0
