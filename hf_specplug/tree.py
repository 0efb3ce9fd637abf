"""The draft tree: the candidate tokens that one forward pass verifies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_specplug.kernels import tree as kernels

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DraftTree:
    """The candidate tokens that one forward pass verifies, parents before children.

    Attributes:
        tokens: int32[N], token ids of the nodes.
        parents: int32[N], index of the parent; -1 for the root, which is the last accepted token.
        probs: float32[N] in (0, 1], P(accepted | parent accepted).
        sources: uint16[N], bit d is set if drafter d proposed the node.

    Example:
        Candidates `7` and `8`, and `9` after `7`: tokens [7, 8, 9], parents [-1, -1, 0].
    """

    tokens: Int32
    parents: Int32
    probs: Float32
    sources: NDArray[np.uint16]

    @classmethod
    def path(cls, tokens: Int32) -> DraftTree:
        """A single path of `tokens` int32[N] with probability 1, for measurements."""
        count = len(tokens)
        parents = np.arange(-1, count - 1, dtype=np.int32)
        return cls(tokens, parents, np.ones(count, np.float32), np.zeros(count, np.uint16))

    @classmethod
    def forest(cls, trees: Sequence[DraftTree]) -> DraftTree:
        """The nodes of several trees, each after a root of its own, one tree after the other."""
        if not any(len(tree) for tree in trees):
            return EMPTY
        starts = np.cumsum([0, *(len(tree) for tree in trees[:-1])], dtype=np.int32)
        pairs = zip(trees, starts, strict=True)
        parents = [np.where(t.parents < 0, t.parents, t.parents + start) for t, start in pairs]
        return cls(
            np.concatenate([tree.tokens for tree in trees]),
            np.concatenate(parents),
            np.concatenate([tree.probs for tree in trees]),
            np.concatenate([tree.sources for tree in trees]),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> NDArray[np.int64]:
        """int64[N], the distance from the root in tokens; 1 for children of the root."""
        return self.ancestors()[1][1:]

    def path_probs(self) -> Float32:
        """float32[N], P(the node and all its ancestors are accepted)."""
        probs = self.probs.tolist()
        for i, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                probs[i] *= probs[parent]
        return np.array(probs, dtype=np.float32)

    def select(self, nodes: NDArray[np.intp]) -> DraftTree:
        """The tree of some of the nodes.

        Args:
            nodes: ascending indices; the parent of each node must be among them.
        """
        parents = self.parents[nodes]
        moved = np.searchsorted(nodes, parents).astype(np.int32)
        moved[parents < 0] = -1
        return DraftTree(self.tokens[nodes], moved, self.probs[nodes], self.sources[nodes])

    def children(self) -> dict[tuple[int, int], int]:
        """The number of each node by (parent, token). Nodes are counted from 1; 0 is the root.

        Example:
            >>> DraftTree.path(np.array([7, 8], np.int32)).children()
            {(0, 7): 1, (1, 8): 2}
        """
        edges = zip(self.parents.tolist(), self.tokens.tolist(), strict=True)
        return {(parent + 1, token): node for node, (parent, token) in enumerate(edges, start=1)}

    def without(self, barred: Iterable[int]) -> DraftTree:
        """The tree without the nodes that carry a token of `barred`, and their descendants."""
        is_barred = np.isin(self.tokens, list(barred))
        return self.select(np.flatnonzero(~(self.ancestors()[0][1:, 1:] & is_barred).any(axis=1)))

    def ancestors(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The tree attention mask and the depths, of the root (0) and the nodes (i + 1).

        Returns:
            (bool[N + 1, N + 1], int64[N + 1])
        """
        return kernels.ancestors(self.parents)  # type: ignore[no-any-return]


EMPTY = DraftTree(
    np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.uint16)
)
