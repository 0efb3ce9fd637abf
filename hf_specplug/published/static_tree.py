"""Static trees: the same shape in every step, filled with a drafter's candidates by rank."""

from __future__ import annotations

import heapq
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_specplug.drafters.contract import Int32
from hf_specplug.kernels.tree import PARENT, TOKEN
from hf_specplug.published.paper import PaperSearch
from hf_specplug.tree import EMPTY, DraftTree

Shape = tuple[Int32, Int32]
"""The shape of a tree: (int32[N] parents, -1 = root, before their children; int32[N] ranks among
siblings, 0 = the likeliest)."""


def static_tree(levels: Sequence[int], ranks: int) -> Shape:
    """A shape with so many nodes at each depth (Token Recycling, section 3.2).

    The paper gives the sizes of the levels, but not their nodes. Here each level keeps the nodes
    whose ranks (from 1) have the smallest product: a token of rank 2 is about half as likely as one
    of rank 1, a token of rank 3 a third.

    Args:
        levels: nodes at depth 1, 2, ...
        ranks: children per node, at most.

    Example:
        >>> parents, rank = static_tree((2, 1), 2)
        >>> parents.tolist(), rank.tolist()
        ([-1, -1, 0], [0, 1, 0])
    """
    parents: list[int] = []
    rank: list[int] = []
    above = [(1, -1)]  # (product of the ranks so far, node)
    for size in levels:
        level = sorted(
            (product * (place + 1), node, place)
            for product, node in above
            for place in range(ranks)
        )[:size]
        above = []
        for product, node, place in sorted(level, key=lambda one: one[1:]):
            above.append((product, len(parents)))
            parents.append(node)
            rank.append(place)
    return np.array(parents, np.int32), np.array(rank, np.int32)


def wide_tree(size: int, ranks: int) -> Shape:
    """The shape of the `size` likeliest nodes, if rank r (from 1) has the probability 1 / 2r.

    Args:
        size: nodes.
        ranks: children per node, at most.

    Example:
        >>> parents, rank = wide_tree(4, 9)
        >>> parents.tolist(), rank.tolist()
        ([-1, -1, 0, -1], [0, 1, 0, 2])
    """
    parents: list[int] = []
    rank: list[int] = []
    waiting = [(2, -1, 0)]  # (1 / probability, parent, rank)
    while len(parents) < size:
        odds, parent, place = heapq.heappop(waiting)
        if place + 1 < ranks:
            heapq.heappush(waiting, (odds // (place + 1) * (place + 2), parent, place + 1))
        heapq.heappush(waiting, (2 * odds, len(parents), 0))
        parents.append(parent)
        rank.append(place)
    return np.array(parents, np.int32), np.array(rank, np.int32)


def depths(parents: Int32) -> Int32:
    """int32[N], the distance of each node from the root in tokens; 1 for its children."""
    found: list[int] = []
    for parent in parents.tolist():
        found.append(1 if parent < 0 else found[parent] + 1)
    return np.array(found, np.int32)


class StaticSearch(PaperSearch):
    """Fills a static tree from one drafter, regardless of `limit`.

    Attributes:
        draft: the last tree.
        filled: intp[len(draft)], its nodes in the shape.
        candidates: by parent (0 = the root, i + 1 = node i of the shape) what `ranked` returned.
    """

    def _prepare(self) -> None:
        super()._prepare()
        self._shape = self.shape()
        self._forget()

    def _forget(self) -> DraftTree:
        self.draft, self.filled = EMPTY, np.empty(0, np.intp)
        self.candidates: dict[int, Sequence[tuple[int, float]]] = {}
        return self.draft

    @classmethod
    @abstractmethod
    def shape(cls) -> Shape:
        """The shape of the tree. The ranks of siblings are 0, 1, ..., without gaps."""

    @abstractmethod
    def ranked(
        self, drafter: Any, root: int, pool: Int32, node: int
    ) -> Sequence[tuple[int, float]]:
        """(token, probability) pairs by rank after a node of `pool` (see `Frontier`)."""

    def _published(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool,
        generator: np.random.Generator | None,
    ) -> DraftTree:
        self._forget()
        expert = self._expert(self.uses[0])
        if expert is None or limit < 1 or depth < 1:
            return self.draft
        drafter, column = expert
        start = time.perf_counter()
        parents, rank = self._shape
        pool = np.zeros((len(parents) + 1, 2), np.int32)  # TOKEN and PARENT
        pool[1:, PARENT] = parents + 1
        probs = np.zeros(len(parents), np.float32)
        reached = [0] * len(pool)  # the depth of each filled node; 0 = not filled
        candidates = self.candidates
        for node, parent, place in zip(
            range(1, len(pool)), pool[1:, PARENT].tolist(), rank.tolist(), strict=True
        ):
            if (parent and not reached[parent]) or reached[parent] == depth or (chain and place):
                continue
            if parent not in candidates:
                ranked = self.ranked(drafter, root, pool, parent)
                candidates[parent] = [pair for pair in ranked if pair[0] not in self._suppressed]
            if place < len(candidates[parent]):
                pool[node, TOKEN], probs[node - 1] = candidates[parent][place]
                reached[node] = reached[parent] + 1
        sources = np.full(len(parents), 1 << column, np.uint16)
        self.filled = np.flatnonzero(reached[1:])
        self.draft = DraftTree(pool[1:, TOKEN], parents, probs, sources).select(self.filled)
        self.seconds[column] = time.perf_counter() - start
        return self.draft
