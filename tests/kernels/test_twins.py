"""Every kernel has a plain-Python twin, and those that no drafter's test compares are here."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests
from hf_specplug import kernels
from hf_specplug.datastore.kinds.contract import token_dtype
from hf_specplug.datastore.kinds.trigram import TrigramIndex
from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafters.trigram import TrigramDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.kernels import (
    aded,
    buckets,
    hierarchy,
    mixer,
    proposals,
    rounds,
    successors,
    tree,
    trie,
)
from hf_specplug.tree import DraftTree
from tests.helpers import context_twins, paper_twins, search_twins, twins  # noqa: F401  # register
from tests.helpers.search_twins import Node


def public_kernels() -> Iterator[str]:
    """`module.kernel` of all that is compiled by itself, where it is defined."""
    for module in pkgutil.iter_modules(kernels.__path__):
        name = f"hf_specplug.kernels.{module.name}"
        for kernel, value in vars(import_module(name)).items():
            function = getattr(value, "py_func", None)
            own = function is not None and function.__module__ == name and kernel[0] != "_"
            if own and module.name != "proposals":  # one row written or found: tested below
                yield f"{module.name}.{kernel}"


def test_every_kernel_has_a_twin_that_is_used() -> None:
    known = list(public_kernels())
    assert len(known) > 45
    assert set(known) == set(twins.TWINS)
    folder = Path(tests.__file__).parent
    written = "".join(file.read_text(encoding="utf-8") for file in folder.rglob("test_*.py"))
    helped = (folder / "helpers" / "twins.py").read_text(encoding="utf-8")
    for kernel, found in twins.TWINS.items():
        names = [twin.__name__ for twin in found]
        used = [name for name in names if f"twins.{name}(" in written or f" {name}(" in helped]
        assert used, f"nothing compares {kernel} with {names}"


EDGES = st.lists(st.floats(-9, 9), max_size=6).map(sorted).map(tuple)


@given(st.floats(-10, 10) | st.integers(-10, 10), EDGES)
def test_buckets(value: float, edges: tuple[float, ...]) -> None:
    assert buckets.bucket.py_func(value, edges) == twins.bucket(value, edges)
    assert buckets.bucket.py_func(edges[0] if edges else 0, edges) == twins.bucket(
        edges[0] if edges else 0, edges
    )


def test_buckets_are_the_same_when_compiled() -> None:
    for value in (np.float32(0.3), np.float64(0.3), np.int32(3), np.uint16(4)):
        for edges in ((0.003, 0.1, 0.3), (2, 3, 4), (1,)):
            assert buckets.bucket(value, edges) == twins.bucket(value, edges)


def test_proposals_are_written_and_found() -> None:
    out = np.zeros((3, 3), np.int32)
    assert proposals.propose(out, 1, 4, 5, 6) == 2
    assert out.tolist() == [[0, 0, 0], [4, 5, 6], [0, 0, 0]]
    assert proposals.is_proposed(out, 0, 2, 5)
    assert not proposals.is_proposed(out, 0, 1, 5)
    assert not proposals.is_proposed(out, 1, 2, 4)


def searched(capacity: int, drafters: int) -> tuple[np.ndarray, ...]:
    """Empty search arrays: pool, probs, evidence."""
    pool = np.full((capacity, tree.COLUMNS), -9, np.int32)
    pool[0] = 0
    return (
        pool,
        np.ones((capacity, tree.PROB_COLUMNS), np.float32),
        np.full((capacity, drafters), -9, np.int32),
    )


def children(pool: np.ndarray, node: int) -> list[int]:
    found = []
    child = int(pool[node, tree.FIRST])
    while child:
        found.append(child)
        child = int(pool[child, tree.NEXT])
    return found


ROWS = st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 4), st.integers(-1, 2)), max_size=6)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans(), ROWS), max_size=6),
    st.lists(st.integers(0, 3), max_size=2),
)
def test_insert(
    calls: list[tuple[int, bool, list[search_twins.Row]]], suppressed: list[int]
) -> None:
    """Proposals of three drafters with two buckets each, round by round, in a pool of nine."""
    pool, probs, evidence = searched(9, 3)
    nodes = [Node(round=1)]
    pool[0, tree.ROUND] = 1
    size = round_number = 1
    for drafter, following, rows in calls:
        if following:  # expand all that is new
            round_number += 1
            for node in range(size):
                if pool[node, tree.ROUND] == 0:
                    pool[node, tree.ROUND] = nodes[node].round = round_number
        begin = 1 + 2 * drafter
        given_rows = np.array(rows, np.int32).reshape(-1, 3)
        answer = tree.insert(
            pool,
            probs,
            evidence,
            size,
            given_rows,
            drafter,
            begin,
            begin + 2,
            np.array(suppressed, np.int32),
            4,
            round_number,
        )
        expected = search_twins.inserted(
            nodes, rows, drafter, range(begin, begin + 2), suppressed, 4, round_number, 9
        )
        assert answer == expected
        size = max(size, answer)
        assert size == len(nodes)
    for place, node in enumerate(nodes):
        assert children(pool, place) == node.children[::-1]
        if place:
            columns = [tree.TOKEN, tree.DEPTH, tree.ROUND, tree.SOURCES]
            bits = sum(1 << drafter for drafter in node.evidence)
            assert pool[place, columns].tolist() == [node.token, node.depth, node.round, bits]
            assert evidence[place].tolist() == [node.evidence.get(d, 0) for d in range(3)]
            assert place in nodes[pool[place, tree.PARENT]].children
            assert not probs[place].any()


@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 15), st.sampled_from([0.5, 1])),
        max_size=8,
    )
)
def test_chosen_nodes_become_a_tree_and_its_step(
    given_nodes: list[tuple[int, bool, int, float]],
) -> None:
    """A node is chosen only if its parent is; its sources and its parent's place are kept."""
    pool, probs, _ = searched(9, 1)
    nodes, chosen = [Node()], [0]
    for place, (above, wanted, bits, share) in enumerate(given_nodes, start=1):
        above = min(above, place - 1)
        evidence = {drafter: 1 for drafter in range(4) if bits >> drafter & 1}
        path = nodes[above].path * share
        nodes.append(Node(token=10 * place, prob=1 / (1 << place), path=path, evidence=evidence))
        nodes[above].children.append(place)
        pool[place, [tree.TOKEN, tree.PARENT, tree.SOURCES]] = 10 * place, above, bits
        probs[place, [tree.PROB, tree.PATH]] = 1 / (1 << place), path
        chosen += [place] if wanted and above in chosen else []
    count = len(chosen) - 1
    draft = DraftTree(
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.float32),
        np.empty(count, np.uint16),
    )
    columns = draft.tokens, draft.parents, draft.probs, draft.sources
    ordered = np.array(chosen[1:], np.int32)
    tree.read(pool, probs, ordered, *columns)
    expected = search_twins.as_tree(nodes, chosen[1:])
    assert pool[ordered, tree.TOKEN].tolist() == [token for token, *_ in expected]
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    step = Step.of_tree(7, draft, 5, [0], [3], None)
    assert step.tokens.tolist() == [7, *(token for token, *_ in expected)]
    assert step.parents.tolist() == [-1, *(parent + 1 for _, parent, *_ in expected)]
    assert step.sources.tolist() == [0, *(sources for *_, sources in expected)]


PROBS = st.lists(st.sampled_from([0.02, 0.1, 0.2, 0.25]), max_size=4)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5]), max_size=5))
def test_a_chain_follows_the_likeliest_child(paths: list[float]) -> None:
    pool, probs, _ = searched(9, 1)
    for child, path in enumerate(paths, start=1):
        pool[child, tree.NEXT] = child + 1 if child < len(paths) else 0
        probs[child, tree.PATH] = path
    pool[0, tree.FIRST] = 1 if paths else 0
    chosen = np.full(3, -1, np.int32)
    expected = search_twins.followed(list(enumerate(paths, start=1)))
    for limit, depth in ((3, 3), (1, 3), (3, 1)):
        frontier = np.zeros(3, np.int32)
        answer = rounds.follow(pool, probs, limit, depth, 2, chosen, frontier)
        if expected is None:
            assert answer == (0, 0)
            continue
        assert answer == (1, int(limit == depth))
        assert chosen[0] == frontier[0] == expected
        assert pool[expected, tree.ROUND] == 2


@given(st.lists(PROBS, min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_draw(families: list[list[float]], seed: int) -> None:
    """The same generator gives the same ranking, and ends in the same state."""
    pool, probs, _ = searched(40, 1)
    nodes = [Node()]
    for place, family in enumerate(families[: 1 + sum(map(len, families))]):
        if place >= len(nodes):
            break
        for prob in family:
            child = len(nodes)
            pool[child] = 0
            pool[child, tree.PARENT], pool[child, tree.NEXT] = place, pool[place, tree.FIRST]
            pool[place, tree.FIRST] = child
            probs[child, tree.PROB] = prob
            nodes[place].children.append(child)
            nodes.append(Node(prob=float(np.float32(prob))))
    rngs = np.random.default_rng(seed), np.random.default_rng(seed)
    expanded = [place for place in range(len(nodes)) if place < len(families)]
    tree.draw(pool, probs, np.array(expanded, np.int32), rngs[0])
    search_twins.drawn(nodes, expanded, rngs[1])
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
    paths = [node.path for node in nodes[1:]]
    np.testing.assert_allclose(probs[1 : len(nodes), tree.PATH], paths, rtol=1e-3)
    for place, node in enumerate(nodes):
        for child in node.children:
            assert probs[child, tree.PATH] <= probs[place, tree.PATH]


LEVEL = st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 4), st.integers(-1, 2)), max_size=9)


@given(st.lists(LEVEL, max_size=4), st.lists(st.integers(0, 3), unique=True), st.integers(1, 4))
def test_levels_fill_what_others_leave(
    levels: list[list[search_twins.Row]], frontier: list[int], limit: int
) -> None:
    levels = [
        [(frontier[node % len(frontier)], token, max(bucket, 0)) for node, token, bucket in rows]
        if frontier and len(rows) % 2
        else rows
        for rows in levels
    ]
    nodes = np.array(frontier, np.int32)
    place, taken = np.zeros(5, np.int32), np.full(len(nodes), 7, np.int32)
    hierarchy.begin(nodes, place, taken)
    assert not taken.any()
    assert place[nodes].tolist() == list(range(len(nodes)))
    tokens = np.zeros((len(nodes), limit), np.int32)
    out = np.zeros((len(nodes) * limit, 3), np.int32)
    size = 0
    for number, rows in enumerate(levels):
        given_rows = np.array(rows, np.int32).reshape(-1, 3)
        ends = 3 * number, 3 * number + 3
        size = hierarchy.take(given_rows, *ends, nodes, place, taken, tokens, size, out)
        if size < 0:
            break
    expected = search_twins.taken([(rows, 3) for rows in levels], frontier, limit)
    if isinstance(expected, int):
        assert size == expected
    else:
        assert [tuple(row) for row in out[:size].tolist()] == expected


def drafter_of(stores: list[list[int]], text: list[int], vocab: int) -> TrigramDrafter:
    made = TrigramDrafter()
    for tokens in stores:
        arrays = TrigramIndex.build(np.array(tokens, token_dtype(vocab)), vocab)
        index = TrigramIndex(arrays, vocab)
        made.shards.append((tuple(getattr(index, name) for name in index.array_names), vocab))
    made.begin(Context(text, vocab))
    return made


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=2),
    st.integers(2, 100),
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 6),
)
def test_aded_searches_and_chooses(
    stores: list[int], length: int, seed: int, limit: int, depth: int
) -> None:
    """Over stores and a text of so many random tokens."""
    rng = np.random.default_rng(seed)
    text = (rng.zipf(1.5, length) % 9).tolist()
    made = drafter_of([(rng.zipf(1.5, size) % 10).tolist() for size in stores], text, 9)
    table = made.table.keys, made.table.ids, made.table.weights
    state = tuple(made.shards), table, text[-2], text[-1]
    scratch: list[Any] = [np.empty(aded.trigram.CANDIDATES, np.int32)]
    scratch.append(np.empty(aded.trigram.MAX_COUNTED, np.int64))
    scratch.append(np.empty(aded.trigram.CANDIDATES))

    def follow(first: int, second: int) -> list[tuple[int, float]]:
        found = aded.raised(*state[:2], first, second, *scratch)
        return list(zip(scratch[0][:found].tolist(), scratch[2][:found].tolist(), strict=True))

    nodes = np.empty((aded.CAPACITY, aded.ROLLOUT_COLUMNS), np.int32)
    numbers = np.empty((aded.CAPACITY, 2))
    rngs = np.random.default_rng(seed), np.random.default_rng(seed)
    size = aded.search(*state, rngs[0], nodes, numbers)
    expected = search_twins.rollouts(follow, text, rngs[1])
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
    assert nodes[1:size, aded.ROLLOUT_TOKEN].tolist() == [node.token for node in expected[1:]]
    assert nodes[:size, aded.ROLLOUT_VISITS].tolist() == [node.visits for node in expected]
    values = [node.value for node in expected]
    np.testing.assert_allclose(numbers[:size, aded.ROLLOUT_VALUE], values, rtol=1e-9)

    out, probs = np.empty((limit, 2), np.int32), np.empty(limit, np.float32)
    number = aded.choose(*state, nodes, numbers, size, limit, depth, out, probs)
    paths: list[list[int]] = []
    for token, parent in out[:number].tolist():
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    draft = search_twins.chosen(follow, text, expected, limit, depth)
    assert paths == [path for path, _ in draft]
    assert probs[:number].tolist() == [np.float32(prob) for _, prob in draft]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=25, unique=True))
def test_a_trie_is_a_dictionary(edges: list[tuple[int, int]]) -> None:
    nodes = np.full((len(edges) + 1, 2), -1, np.int32)
    table, known = np.zeros(64, np.int32), twins.Trie()
    for node, (parent, token) in enumerate(edges, start=1):
        slot = trie.slot_of(table, nodes, parent, token)
        assert table[slot] == 0
        table[slot] = node
        nodes[node, trie.TRIE_TOKEN], nodes[node, trie.TRIE_PARENT] = token, parent
        known.add(parent, token)
    larger = np.zeros(128, np.int32)
    trie.rehash(nodes, larger, len(nodes))
    for parent in range(4):
        for token in range(7):
            for each in (table, larger):
                slot = trie.slot_of(each, nodes, parent, token)
                assert each[slot] == known.child(parent, token)


@given(st.lists(st.integers(-1, 2**31 - 1), max_size=5))
def test_keys_are_those_of_plain_python(tokens: list[int]) -> None:
    key, expected = np.uint64(successors.EMPTY_GRAM), successors.EMPTY_GRAM
    for token in tokens:
        key, expected = np.uint64(successors.longer(key, token)), twins.longer(expected, token)
        assert int(key) == expected


@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_a_smaller_table_restores_the_latest_rows(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(1, 2**63, count).astype(np.uint64))
    rng.shuffle(keys)
    rows = 4 * successors.WAYS
    table = (
        np.zeros(rows, np.uint64),
        np.zeros(rows, np.int32),
        np.zeros(rows, np.int32),
        np.zeros((rows, 2), np.int32),
        np.zeros((rows, 2), np.float32),
    )
    visits = rng.integers(1, 9, len(keys)).astype(np.int32)
    ids, weights = rng.integers(0, 9, (len(keys), 2)), rng.random((len(keys), 2))
    successors.restore(*table, keys, visits, ids.astype(np.int32), weights.astype(np.float32))
    twin = twins.Sets(4, successors.WAYS)
    for key in keys.tolist():
        twin.claim(key)
    assert set(table[0][table[0] > 0].tolist()) == set(twin.counts())
    for place, key in enumerate(keys.tolist()):
        row = successors.find(table[0], np.uint64(key))
        assert (row >= 0) == (key in twin.counts())
        if row >= 0:
            assert table[2][row] == visits[place]
            assert table[3][row].tolist() == ids[place].tolist()
            assert table[4][row].tolist() == weights[place].astype(np.float32).tolist()


@given(st.floats(0.001, 0.999), st.integers(0, 1), st.integers(1, 7))
def test_recalibration_follows_the_outcome(raw: float, token: int, depth: int) -> None:
    """One proposed child, token 0: both bins next to its log-odds move."""
    pool, probs, evidence = searched(2, 1)
    pool[0, [tree.FIRST, tree.ROUND]] = 1
    pool[1] = 0
    pool[1, tree.DEPTH] = depth
    probs[1, tree.RAW], probs[1, tree.NOISE] = raw, 0
    evidence[:] = [[0], [1]]
    table = np.array([[0, 0, 0], [0.3, -0.85, 0]], np.float32)
    state = Mixer(["one"])
    expected = state.apm.copy()
    row = twins.bucket(depth, (2, 5))
    raw = float(probs[1, tree.RAW])
    expected[row] = twins.recalibrating(raw, token == 0, 0.02, expected[row].tolist())
    emitted = np.array([token], np.int32)
    arrays: Any = (pool, probs, evidence, emitted, table, state.weights, state.apm)
    assert mixer.learn(*arrays, state.rates, np.empty((2, 6))) == 1
    np.testing.assert_allclose(state.apm, expected, rtol=1e-9)


def test_evidence_is_as_documented() -> None:
    """The dtype that the kernels document is the one that the search allocates."""

    def fail(_: Any, error: Exception) -> None:
        raise error

    allocated = TreeSearch([], Mixer([]), 10, fail)._evidence.dtype
    documented = re.findall(r"`?evidence`? +(\w+)\[", f"{tree.__doc__}{mixer.__doc__}")
    assert set(documented) == {str(allocated)}


@pytest.mark.parametrize(
    "module", [module.name for module in pkgutil.iter_modules(kernels.__path__)]
)
def test_no_constant_is_left_over(module: str) -> None:
    folder = Path(tree.__file__).parents[1]
    sources = "\n".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))
    names = [
        name
        for name, value in vars(import_module(f"hf_specplug.kernels.{module}")).items()
        if name.isupper() and name[0] != "_" and isinstance(value, int)
    ]
    for name in names:
        assert len(re.findall(rf"\b{name}\b", sources)) > 1, name
