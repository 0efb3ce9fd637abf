"""Drafts as papers make them, to compare with ours: `SpecPlug(published="rasd")`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_specplug.drafters.base import Drafter, Int32
from hf_specplug.errors import OptionError
from hf_specplug.mixer import Mixer
from hf_specplug.search import TreeSearch
from hf_specplug.tree import EMPTY, DraftTree

LEVELS = (8, 21, 25, 15, 8, 3)
"""Nodes by depth of Token Recycling's static tree: 80 in all (Luo et al. 2024, section 3.2)."""


def static_tree(levels: Sequence[int], ranks: int) -> tuple[Int32, Int32]:
    """A template tree: (parents int32[N], -1 = root; rank int32[N] of each among its siblings).

    Of each level the nodes with the smallest product of ranks are kept: a token is about half as
    likely at rank 2, a third at rank 3. (The paper gives the size of each level, not its nodes.)

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


def fuse(generated: DraftTree, retrieved: DraftTree, prune: bool = True) -> DraftTree:
    """RASD's tree (Quan et al. 2025, arXiv 2503.03434, sections 3.2 and 3.3).

    Retrieved paths whose first token the generated tree does not hold are pruned; the others are
    inserted at their longest common prefix, so that nothing is checked twice.

    Example:
        generated `a`, retrieved `a b` and `c d`: the result is `a b`.
    """
    tokens, parents = generated.tokens.tolist(), generated.parents.tolist()
    probs, sources = generated.probs.tolist(), generated.sources.tolist()
    place = {edge: node for node, edge in enumerate(zip(parents, tokens, strict=True))}
    moved: dict[int, int] = {-1: -1}
    for node, (parent, token) in enumerate(
        zip(retrieved.parents.tolist(), retrieved.tokens.tolist(), strict=True)
    ):
        if parent not in moved or (prune and parent < 0 and (-1, token) not in place):
            continue
        edge = moved[parent], token
        if edge not in place:
            place[edge] = len(tokens)
            tokens.append(token)
            parents.append(edge[0])
            probs.append(0.0)
            sources.append(0)
        same = moved[node] = place[edge]
        probs[same] = max(probs[same], float(retrieved.probs[node]))
        sources[same] |= int(retrieved.sources[node])
    return DraftTree(
        np.array(tokens, np.int32),
        np.array(parents, np.int32),
        np.array(probs, np.float32),
        np.array(sources, np.uint16),
    )


class TokenRecycling(TreeSearch):
    """The recycled rows alone, in the paper's static tree of 80 nodes, whatever `limit` says."""

    def grow(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool = False,
        ask: Sequence[bool] | None = None,
    ) -> DraftTree:
        matrix = [e for e in self._active if e.drafter.name == "recycling"]
        if not matrix or limit < 1 or depth < 1:
            return EMPTY
        ids: Int32 = matrix[0].drafter.state_dict()["ids"]
        parents, rank = static_tree(LEVELS[: 1 if chain else depth], 1 if chain else ids.shape[1])
        tokens = np.empty(len(parents), np.int32)
        there = np.zeros(len(parents), np.bool_)
        for node, (parent, place) in enumerate(zip(parents.tolist(), rank.tolist(), strict=True)):
            above = root if parent < 0 else int(tokens[parent])
            tokens[node] = ids[above, place]
            there[node] = tokens[node] >= 0 and (parent < 0 or there[parent])
        size = len(parents)
        whole = DraftTree(
            tokens,
            parents,
            (1.0 / (rank + 2)).astype(np.float32),
            np.full(size, 1 << matrix[0].column, np.uint16),
        )
        return whole.select(np.flatnonzero(there))


class Rasd(TreeSearch):
    """Retrieval and model-derived candidates, each in a tree of its own, pruned and fused.

    The model-derived tree (the paper's draft model) is grown by the drafters that see the target's
    outputs, the retrieved one by the others; each has half of the nodes.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        mixer: Mixer,
        vocab_size: int,
        on_error: Callable[[Drafter, Exception], None],
    ) -> None:
        super().__init__(drafters, mixer, vocab_size, on_error)
        self._halves = [
            TreeSearch(drafters, Mixer(self.names), vocab_size, self._lost) for _ in range(2)
        ]
        model_derived = [bool(drafter.needs) for drafter in drafters]
        self._asks = [model_derived, [not derived for derived in model_derived]]

    def _lost(self, drafter: Drafter, error: Exception) -> None:
        """One half has dropped a drafter: so do we."""
        if drafter in self.drafters:
            super().drop(drafter, error)

    def drop(self, drafter: Drafter, error: Exception) -> None:
        self._lost(drafter, error)
        for half in self._halves:
            half.drop(drafter, error)

    def grow(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool = False,
        ask: Sequence[bool] | None = None,
    ) -> DraftTree:
        if chain:
            return super().grow(root, limit, depth, chain, ask)
        generated, retrieved = (
            half.grow(root, size, depth, ask=asked)
            for half, size, asked in zip(
                self._halves, (limit - limit // 2, limit // 2), self._asks, strict=True
            )
        )
        return fuse(generated, retrieved)

    def learn(self, emitted: Int32) -> None:
        super().learn(emitted)
        for half in self._halves:
            half.learn(emitted)


PUBLISHED: dict[str, type[TreeSearch]] = {"token-recycling": TokenRecycling, "rasd": Rasd}


def search_class(published: str | None) -> type[TreeSearch]:
    """The search of a paper; ours for None.

    Raises:
        OptionError: no paper is known by this name.
    """
    if published is None:
        return TreeSearch
    if published not in PUBLISHED:
        raise OptionError(
            f"published must be one of {sorted(PUBLISHED)} or None, not {published!r}"
        )
    return PUBLISHED[published]
