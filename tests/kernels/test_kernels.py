"""Kernels against their plain-Python twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.context import ContextDrafter
from hf_specplug.drafters.contract import Context, Frontier, Step, TopK
from hf_specplug.drafters.recycling import SUCCESSORS, RecyclingDrafter
from hf_specplug.kernels import ngram, topk, tree
from hf_specplug.kernels.buckets import PROB_BUCKETS
from tests.helpers import twins

TEXT = st.lists(st.integers(0, 5), min_size=1, max_size=70)
PATH = st.lists(st.integers(0, 5), max_size=20)


def chain_pool(path: list[int]) -> np.ndarray:
    """Search nodes 1..n as one path."""
    pool = np.zeros((len(path) + 1, tree.COLUMNS), np.int32)
    for i, token in enumerate(path, start=1):
        pool[i, : tree.DEPTH + 1] = token, i - 1, i
    return pool


def expand_path(drafter: ContextDrafter, path: list[int], last: int) -> list[tuple[int, int]]:
    """(token, bucket) rows of the last node of a path, expanded node by node."""
    pool = chain_pool(path)
    rows = np.empty((0, 3), np.int32)
    for node in range(len(path) + 1):
        rows = drafter.expand(Frontier(np.array([node], np.int32), pool, last))
    return [(int(token), int(bucket)) for _, token, bucket in rows]


def bucket(length: int, count: int, total: int, latest: bool, longest: bool) -> int:
    row = sum(length > edge for edge in (1, 2, 3, 4, 6, 9, 15))
    column = 2 * sum(count / total >= step for step in (0.1, 0.25, 0.5)) + latest
    if not longest:
        return 88 + row * 8 + column
    if count / total >= 0.8:
        column = 8 + (count > 1) + (count > 3)
    return row * 11 + column


@given(TEXT, PATH, st.integers(0, 70))
def test_context_names_what_followed_every_suffix(
    text: list[int], path: list[int], cut: int
) -> None:
    drafter = ContextDrafter()
    context = Context(text[:cut], vocab_size=6)
    drafter.begin(context)
    for token in text[cut:]:  # incrementally, as in decoding
        none = np.empty(0, np.int32)
        step = Step.of_text(none, 0, [], [token], None)
        context.append([token])
        drafter.observe(step)
    rows = expand_path(drafter, path, text[-1])
    expected = twins.continuations(text, path)[: drafter.rows_per_node]
    longest = max((entry[1] for entry in expected), default=0)
    assert rows == [
        (token, bucket(length, count, total, latest, length == longest))
        for token, length, count, total, latest in expected
    ]


def test_context_grows_and_keeps_its_index() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 3, 5000).tolist()
    one, two = ContextDrafter(), ContextDrafter()
    one.begin(Context(text, 3))
    context = Context([], 3)
    two.begin(context)
    for start in range(0, 5000, 250):
        part = np.array(text[start : start + 250], np.int32)
        none = np.empty(0, np.int32)
        two.observe(Step.of_text(none, 0, [], part, None))
    assert expand_path(one, [1, 2], text[-1]) == expand_path(two, [1, 2], text[-1])
    expected = twins.continuations(text, [1, 2])
    assert [token for token, _ in expand_path(one, [1, 2], text[-1])] == [e[0] for e in expected]


@given(st.lists(st.integers(-1, 0), max_size=1), st.data())
def test_ancestors(start: list[int], data: st.DataObject) -> None:
    parents = [-1] if start else []
    for i in range(1, data.draw(st.integers(0, 12))):
        parents.append(data.draw(st.integers(-1, min(i, len(parents)) - 1)))
    seen, depths = tree.ancestors(np.array(parents, np.int32))
    assert seen.tolist() == twins.ancestors(parents)
    assert depths.tolist() == [sum(row) - 1 for row in seen.tolist()]


@given(
    st.lists(st.sampled_from([0.01, 0.1, 0.2, 0.25, 0.5, 0.9]), min_size=1, max_size=40),
    st.integers(1, 45),
)
def test_best_takes_the_highest_path_probabilities(paths: list[float], limit: int) -> None:
    size = len(paths) + 1
    pool = np.zeros((size, tree.COLUMNS), np.int32)
    pool[:, tree.DEPTH] = 1
    probs = np.ones((size, tree.PROB_COLUMNS), np.float32)
    probs[1:, tree.PATH] = paths
    chosen, frontier = np.empty(limit, np.int32), np.empty(limit, np.int32)
    top = np.empty(limit, np.float32)
    number, waiting = tree.best(pool, probs, size, limit, 9, 2, chosen, frontier, top)
    assert chosen[:number].tolist() == twins.best(paths, limit)
    full = len(paths) >= limit
    least = min(paths[node - 1] for node in chosen[:number])
    reaching = [node for node in chosen[:number] if not full or paths[node - 1] > np.float32(least)]
    likeliest = max((paths[node - 1] for node in reaching), default=0.0)
    assert frontier[:waiting].tolist() == [
        node
        for node in reaching
        if np.float32(paths[node - 1]) >= tree.FRONTIER_SHARE * np.float32(likeliest)
    ]
    assert (pool[frontier[:waiting], tree.ROUND] == 2).all()


NUMBERS = st.one_of(
    st.integers(-3, 3).map(float), st.sampled_from([np.nan, -np.nan, -0.0, np.inf, -np.inf])
)


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.integers(1, 9))
def test_top_k(row: list[float], k: int) -> None:
    logits = np.array([row, row], np.float32)
    ids, probs, argmax = topk.top_k(logits, k)
    expected, shares = twins.top_k(row, k)
    assert ids[0].tolist() == ids[1].tolist() == expected
    assert argmax.tolist() == logits.argmax(1).tolist() == torch.tensor(logits).argmax(1).tolist()
    if not np.isnan(row).any():  # a NaN counts as very unlikely
        np.testing.assert_allclose(probs[0], shares, rtol=1e-3, atol=1e-12)


@given(
    st.integers(100, 1700),
    st.integers(0, 1 << 32),
    st.sampled_from([0.01, 1.0, 8.0]),
    st.booleans(),
    st.booleans(),
)
def test_top_k_of_many(count: int, seed: int, scale: float, ties: bool, zeros: bool) -> None:
    """Rows of several blocks, whole and cut, with equal logits in different blocks."""
    rows = scale * np.random.default_rng(seed).standard_normal((3, count)).astype(np.float32)
    if ties:
        rows = np.round(rows)
    rows[1, ::2] = -np.inf
    rows[2, : count // 2] *= 2
    if zeros:  # many largest ones, of two signs
        rows[0] = np.copysign(np.maximum(rows[0] - rows[0].max() + 0.01, 0), rows[0])
    ids, probs, argmax = topk.top_k(rows, 8)
    assert argmax.tolist() == rows.argmax(1).tolist()
    for row, found, shares in zip(rows.tolist(), ids.tolist(), probs, strict=True):
        expected = twins.top_k(row, 8)
        if not zeros:
            assert found == expected[0]
        np.testing.assert_allclose(shares, expected[1], rtol=1e-3)


STEP = st.lists(st.tuples(st.integers(-1, 7), st.integers(0, 90)), min_size=1, max_size=9)


@given(st.lists(STEP, max_size=5), st.data())
def test_recycling_keeps_the_accepted_row(steps: list, data: st.DataObject) -> None:
    drafter = RecyclingDrafter()
    drafter.begin(Context([0], vocab_size=100))
    history = []
    for step in steps:
        tokens = [token for token, _ in step]
        rows = [[start + k for k in range(SUCCESSORS)] for _, start in step]
        visited = sorted(data.draw(st.sets(st.integers(0, len(tokens) - 1), max_size=3)))
        history.append((tokens, rows, visited))
        drafter.observe(
            Step.of_text(
                np.array(tokens, np.int32),
                0,
                visited,
                [],
                TopK(np.array(rows, np.int32), np.full((len(rows), SUCCESSORS), 0.05, np.float32)),
            )
        )
    matrix = twins.recycled(history)
    pool = chain_pool([3])
    for token in range(8):
        rows = drafter.expand(Frontier(np.array([0], np.int32), pool, token))
        assert rows[:, 1].tolist() == matrix.get(token, [])
        assert (rows[:, 2] // PROB_BUCKETS).tolist() == list(range(len(rows)))
        assert set((rows[:, 2] % PROB_BUCKETS).tolist()) <= {3}


def test_recycling_is_small() -> None:
    drafter = RecyclingDrafter()
    drafter.begin(Context([0], vocab_size=32000))
    assert drafter.ids.nbytes + drafter.probs.nbytes < 2_000_000


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ((5, 1, 0), tree.BAD_NODE),
        ((-1, 1, 0), tree.BAD_NODE),
        ((0, 9, 0), tree.BAD_TOKEN),
        ((0, -1, 0), tree.BAD_TOKEN),
        ((0, 1, 2), tree.BAD_BUCKET),
        ((0, 1, -1), tree.BAD_BUCKET),
        ((0, 1, 1), 2),
    ],
)
def test_insert_checks_every_row(row: tuple[int, int, int], answer: int) -> None:
    pool = np.zeros((8, tree.COLUMNS), np.int32)
    pool[0, tree.ROUND] = 1
    probs = np.ones((8, tree.PROB_COLUMNS), np.float32)
    evidence = np.zeros((8, 3), np.int32)
    rows = np.array([row], np.int32)
    assert (
        tree.insert(pool, probs, evidence, 1, rows, 2, 5, 7, np.zeros(0, np.int32), 9, 1) == answer
    )
    if answer == 2:
        assert pool[1, tree.TOKEN] == 1
        assert pool[1, tree.SOURCES] == 4
        assert evidence[1].tolist() == [0, 0, 6]


def test_the_trie_says_when_it_is_full() -> None:
    nodes = np.zeros((20, ngram.GRAM_COLUMNS), np.int32)
    table, active = np.zeros(64, np.int32), np.zeros(5, np.int32)
    assert ngram.extend(nodes, table, active, 1, np.arange(4, dtype=np.int32)) > 1
    assert ngram.extend(nodes, table, active, 11, np.arange(4, dtype=np.int32)) == -1
