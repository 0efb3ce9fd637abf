"""RASD (Quan et al. 2025, arXiv 2503.03434) as published: two trees, pruned and fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_specplug.drafters.contract import Context, Drafter, Int32
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.published.paper import PaperSearch
from hf_specplug.tree import DraftTree


def fuse(generated: DraftTree, retrieved: DraftTree, limit: int) -> DraftTree:
    """Fuse a generated and a retrieved tree (RASD, section 3.3).

    Paths are inserted at their longest common prefix, so that nothing is verified twice. Each tree
    gives the likeliest half of the nodes; what a common prefix or a small tree leaves free is then
    filled with the likeliest other nodes of both.

    Args:
        generated, retrieved: the trees; the second has been pruned.
        limit: nodes at most.

    Example:
        generated `a`, retrieved `a b` and `a c`: the result is `a`, `a b` and `a c` if limit is 3.
    """
    trees = generated, retrieved
    orders = [np.argsort(-tree.path_probs(), kind="stable").tolist() for tree in trees]
    halves = limit - limit // 2, limit // 2
    first = [(at, node) for at in (0, 1) for node in orders[at][: halves[at]]]
    rest = [(at, node) for at in (0, 1) for node in orders[at][halves[at] :]]
    paths = [tree.path_probs() for tree in trees]
    rest.sort(key=lambda one: -float(paths[one[0]][one[1]]))
    place: dict[tuple[int, int], int] = {}
    probs, sources = [0.0] * limit, [0] * limit
    moved: list[dict[int, int]] = [{-1: -1}, {-1: -1}]
    for at, node in first + rest:
        tree = trees[at]
        parent = int(tree.parents[node])
        if parent not in moved[at]:
            continue
        edge = moved[at][parent], int(tree.tokens[node])
        if edge not in place:
            if len(place) == limit:
                continue
            place[edge] = len(place)
        same = moved[at][node] = place[edge]
        probs[same] = max(probs[same], float(tree.probs[node]))
        sources[same] |= int(tree.sources[node])
    return DraftTree(
        np.array([token for _, token in place], np.int32),
        np.array([parent for parent, _ in place], np.int32),
        np.array(probs[: len(place)], np.float32),
        np.array(sources[: len(place)], np.uint16),
    )


class _Half(TreeSearch):
    """A best-first search whose first tokens can be restricted."""

    in_kernel = False  # `_admitted` sees all rows
    heads: Int32 | None = None  # the first tokens that are admitted; None: all

    def _admitted(self, rows: Int32) -> Int32:
        rows = super()._admitted(rows)
        if self.heads is None:
            return rows
        return np.ascontiguousarray(rows[(rows[:, 0] != 0) | np.isin(rows[:, 1], self.heads)])


def is_model_derived(drafter: Drafter) -> bool:
    """Whether a drafter proposes what the target found likely, rather than what it retrieves.

    It does if it reads the target's likeliest tokens ("topk"). One that reads a datastore
    retrieves, also if it searches by the target's hidden states.
    """
    return "topk" in drafter.needs and not drafter.kinds


class Rasd(PaperSearch):
    """Grows a generated and a retrieved tree, prunes the second and fuses both.

    The drafters that propose what the target found likely stand for the paper's draft model and
    grow the generated tree; those that retrieve grow the other one. What is retrieved is pruned
    while it grows: a first token is admitted only if a model-derived drafter proposes it as well
    (section 3.2). If none proposes anything, nothing is pruned.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        mixer: Mixer,
        vocab_size: int,
        on_error: Callable[[Drafter, Exception], None],
    ) -> None:
        super().__init__(drafters, mixer, vocab_size, on_error)
        self._generated, self._retrieved = self._halves = [
            _Half(drafters, Mixer(self.names), vocab_size, self._lost) for _ in range(2)
        ]
        self._derived = [is_model_derived(drafter) for drafter in drafters]

    def _lost(self, drafter: Drafter, error: Exception) -> None:
        """Drop a drafter that one half has dropped."""
        if drafter in self.drafters:
            super().drop(drafter, error)

    def begin(self, context: Context) -> None:
        super().begin(context)
        for half in self._halves:
            half._suppressed = self._suppressed

    def drop(self, drafter: Drafter, error: Exception) -> None:
        self._lost(drafter, error)
        for half in self._halves:
            half.drop(drafter, error)

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
        generated = self._generated.grow(root, limit, depth, ask=self._derived)
        heads = self._generated.proposal(0)[0] if len(generated) else None
        self._retrieved.heads = heads
        others = [not derived for derived in self._derived]
        retrieved = self._retrieved.grow(root, limit, depth, ask=others)
        both = zip(self._generated.seconds, self._retrieved.seconds, strict=True)
        self.seconds = [sum(pair) for pair in both]
        return fuse(generated, retrieved, limit)

    def learn(self, emitted: Int32) -> None:
        super().learn(emitted)
        for half in self._halves:
            half.learn(emitted)
