"""What the searches of papers have in common: they draft from named drafters only."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from hf_specplug.drafting.search import TreeSearch
from hf_specplug.tree import EMPTY, DraftTree


class PaperSearch(TreeSearch):
    """Base class of the searches of papers. Only the drafters in `uses` begin, learn and draft."""

    stochastic: ClassVar[bool] = False

    def _prepare(self) -> None:
        if self.uses:
            self._active = [e for e in self._active if e.drafter.name in self.uses]

    def _expert(self, name: str) -> tuple[Any, int] | None:
        """(the drafter of this name, its column); None if it has been dropped."""
        found = (e for e in self._active if e.drafter.name == name)
        return next(((e.drafter, e.column) for e in found), None)


class OneDrafterSearch(PaperSearch):
    """Base class of the searches that draft a tree from one drafter, the only one in `uses`."""

    @abstractmethod
    def _tree(self, drafter: Any, source: int, root: int, limit: int, depth: int) -> DraftTree:
        """The draft after the token `root`; suppressed tokens are removed from it afterwards.

        Args:
            drafter: the drafter.
            source: its bit in `DraftTree.sources`.
            root, limit, depth: see `TreeSearch.grow`; both limits are at least 1.
        """

    def _published(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool,
        generator: np.random.Generator | None,
    ) -> DraftTree | None:
        if chain:
            return None
        expert = self._expert(self.uses[0])
        if expert is None or limit < 1 or depth < 1:
            return EMPTY
        drafter, column = expert
        start = time.perf_counter()
        tree = self._tree(drafter, 1 << column, root, limit, depth)
        self.seconds[column] = time.perf_counter() - start
        return tree.without(self._suppressed) if len(self._suppressed) else tree


def merged(rows: Sequence[tuple[Sequence[int], int]], limit: int, depth: int) -> DraftTree:
    """Rows of tokens merged into one tree, cut level by level.

    A tree verifies the same continuations as the rows one below the other, but a common prefix only
    once. The probability of a node is the share of its parent's rows that contain it.

    Args:
        rows: (tokens, sources) of each row, the best first.
        limit: nodes at most: all of depth 1, then all of depth 2, ..., in the order of the rows.
        depth: tokens of a row at most.

    Example:
        >>> tree = merged([([5, 6], 1), ([5, 7], 1), ([8], 2)], limit=3, depth=9)
        >>> tree.tokens.tolist(), tree.parents.tolist()
        ([5, 8, 6], [-1, -1, 0])
    """
    place: dict[tuple[int, int], int] = {}
    at = [-1] * len(rows)  # the node that each row has reached; -2: it ended
    counts, sources = [0] * limit, [0] * limit
    for level in range(min(depth, max((len(tokens) for tokens, _ in rows), default=0))):
        for number, (tokens, source) in enumerate(rows):
            if at[number] == -2 or level >= len(tokens):
                at[number] = -2
                continue
            edge = at[number], int(tokens[level])
            if edge not in place and len(place) < limit:
                place[edge] = len(place)
            node = at[number] = place.get(edge, -2)
            if node >= 0:
                counts[node] += 1
                sources[node] |= source
    parents = np.array([parent for parent, _ in place], np.int32)
    taken = np.array(counts[: len(place)], np.float32)
    above = np.append(taken, np.float32(len(rows)))[parents]  # -1, the root, is the last
    return DraftTree(
        np.array([token for _, token in place], np.int32),
        parents,
        taken / above,
        np.array(sources[: len(place)], np.uint16),
    )
