"""Draft trees and the search: shape, order, determinism."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug import DraftTree
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32
from hf_specplug.drafters.registry import create
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.tree import EMPTY
from tests.helpers import twins

VOCAB = 40


class Table(Drafter):
    """Proposes fixed successors of each token: {token: [(next, bucket), ...]}."""

    name: ClassVar[str] = "table"

    def __init__(self, successors: dict[int, list[tuple[int, int]]], name: str = "table") -> None:
        self.successors = successors
        self.name = name  # type: ignore[misc]
        self.priors = np.array([0.9, 0.5, 0.25, 0.125], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        rows = []
        for node in frontier.nodes.tolist():
            token = frontier.root if node == 0 else int(frontier.pool[node, 0])
            rows += [(node, *successor) for successor in self.successors.get(token, [])]
        return np.array(rows, np.int32).reshape(-1, 3)


def search(*drafters: Drafter) -> TreeSearch:
    def fail(drafter: Drafter, error: Exception) -> None:
        raise error

    return TreeSearch(drafters, Mixer([drafter.name for drafter in drafters]), VOCAB, fail)


def all_paths(
    tables: list[Table], root: int, limit: int, depth: int
) -> dict[tuple[int, ...], float]:
    """Every path of up to `depth` tokens and its probability by the mixer, node by node."""
    mixer = Mixer([table.name for table in tables])
    weights, apm = mixer.weights.tolist(), mixer.apm.tolist()
    paths: dict[tuple[int, ...], float] = {(): 1.0}
    edge: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        following: list[tuple[int, ...]] = []
        for path in edge:
            children: dict[int, twins.Named] = {}
            for d, table in enumerate(tables):
                for token, bucket in table.successors.get(path[-1] if path else root, []):
                    children.setdefault(token, {})[d] = float(table.priors[bucket])
            if not children:
                continue
            named = list(children.values())
            sets = [sum(max(one.values()) >= edge for edge in (0.1, 0.35, 0.7)) for one in named]
            probs = twins.mixed(named, sets, weights)
            for token, prob in zip(children, probs, strict=True):
                depth_row = 0 if not path else 1
                prob = twins.recalibrated(prob, apm[depth_row])
                paths[(*path, token)] = paths[path] * prob
                following.append((*path, token))
        edge = sorted(following, key=lambda path: -paths[path])[: limit + 1]
    del paths[()]
    return paths


SUCCESSORS = st.dictionaries(
    st.integers(0, 5),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3)),
        max_size=4,
        unique_by=lambda successor: successor[0],
    ),
    max_size=6,
)


@given(SUCCESSORS, SUCCESSORS, st.integers(1, 20), st.integers(1, 4))
def test_the_tree_is_the_best_one(one: dict, two: dict, limit: int, depth: int) -> None:
    tables = [Table(one, "one"), Table(two, "two")]
    tree = search(*tables).grow(0, limit, depth)
    paths = all_paths(tables, 0, limit, depth)
    expected = sorted(paths.values(), reverse=True)[:limit]
    assert len(tree) == len(expected)
    np.testing.assert_allclose(sorted(tree.path_probs(), reverse=True), expected, rtol=1e-4)
    assert (tree.parents < np.arange(len(tree))).all()
    assert tree.depths().max(initial=0) <= depth
    spelled = []
    for node in range(len(tree)):
        path = []
        while node >= 0:
            path.append(int(tree.tokens[node]))
            node = int(tree.parents[node])
        spelled.append(tuple(path[::-1]))
    assert len(set(spelled)) == len(spelled)  # no token twice under one parent
    assert set(spelled) <= set(paths)


def test_sources_and_probabilities_are_those_of_the_drafters() -> None:
    one, two = Table({0: [(1, 1), (2, 2)]}, "one"), Table({0: [(1, 0), (3, 3)], 1: [(4, 1)]}, "two")
    tree = search(one, two).grow(0, 10, 5)
    sources = dict(zip(tree.tokens.tolist(), tree.sources.tolist(), strict=True))
    assert sources == {1: 3, 2: 1, 3: 2, 4: 2}
    probs = dict(zip(tree.tokens.tolist(), tree.probs.tolist(), strict=True))
    assert probs[1] > max(probs[2], probs[3])  # proposed by both, with high priors
    alone = search(one).grow(0, 10, 5)
    assert probs[1] > alone.probs[alone.tokens == 1]  # both drafters agree


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(1, 30))
def test_same_input_same_tree(text: list[int], limit: int) -> None:
    trees = []
    for _ in range(2):
        drafters = create(["context", "recycling"])
        grown = search(*drafters)
        for drafter in drafters:
            drafter.begin(Context(text, VOCAB))
        trees += [grown.grow(text[-1], limit, 9), grown.grow(text[-1], limit, 9)]
    for tree in trees[1:]:
        assert tree.tokens.tolist() == trees[0].tokens.tolist()
        assert tree.parents.tolist() == trees[0].parents.tolist()
        assert tree.probs.tolist() == trees[0].probs.tolist()


def test_a_chain_follows_the_likeliest_child() -> None:
    table = Table({0: [(1, 2), (2, 1)], 2: [(3, 3)], 3: [(2, 1)]})
    tree = search(table).grow(0, 4, 9, chain=True)
    assert tree.tokens.tolist() == [2, 3, 2, 3]
    assert twins.is_chain(tree)
    assert search(table).grow(0, 4, 2, chain=True).tokens.tolist() == [2, 3]


def test_experts_continue_each_other() -> None:
    """A token that only one drafter proposes is continued by the other drafter."""
    one, two = Table({0: [(7, 0)]}, "one"), Table({7: [(8, 0)]}, "two")
    tree = search(one, two).grow(0, 5, 5)
    assert tree.tokens.tolist() == [7, 8]
    assert tree.sources.tolist() == [1, 2]


def test_select_keeps_the_shape() -> None:
    tree = DraftTree(
        np.array([7, 8, 9, 10], np.int32),
        np.array([-1, -1, 0, 2], np.int32),
        np.array([0.5, 0.4, 0.5, 0.5], np.float32),
        np.ones(4, np.uint16),
    )
    part = tree.select(np.array([0, 2, 3]))
    assert part.tokens.tolist() == [7, 9, 10]
    assert part.parents.tolist() == [-1, 0, 1]
    assert twins.is_chain(part)
    assert not twins.is_chain(tree)
    np.testing.assert_allclose(tree.path_probs(), [0.5, 0.4, 0.25, 0.125])


def test_nothing_to_draft() -> None:
    assert search(Table({})).grow(0, 5, 5) is not EMPTY
    assert len(search(Table({})).grow(0, 5, 5)) == 0
    assert search(Table({0: [(1, 0)]})).grow(0, 0, 5) is EMPTY
    assert search(Table({0: [(1, 0)]})).grow(0, 5, 0) is EMPTY
    assert search().grow(0, 5, 5) is EMPTY
