"""Suffix arrays and retrieval kernels against plain Python, and over damaged arrays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.contract import Context, Frontier, Step
from hf_specplug.drafters.rest import RestDrafter, _Matches
from hf_specplug.kernels import retrieval, suffix
from tests.helpers import twins
from tests.helpers.runs import assert_harmless

VOCAB = 4
TEXT = st.lists(st.integers(0, VOCAB - 1), max_size=60)
DOCUMENTS = st.lists(st.integers(0, VOCAB), min_size=1, max_size=60)  # the last id separates


def shard(tokens: list[int]) -> Any:
    array = np.array(tokens, np.uint16)
    suffixes = suffix.suffix_array(array.astype(np.int32), VOCAB + 1)
    return SimpleNamespace(tokens=array, suffixes=suffixes)


def drafter(shards: list[Any]) -> RestDrafter:
    made = RestDrafter()
    made._shards = [_Matches(each, VOCAB) for each in shards]
    return made


@given(TEXT)
def test_suffix_array(text: list[int]) -> None:
    array = np.array(text, np.int32)
    suffixes = suffix.suffix_array(array, VOCAB)
    assert suffixes.tolist() == twins.suffix_array(text)
    assert suffix.is_sorted(array, suffixes)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=300))
def test_suffix_array_of_repetitions(text: list[int]) -> None:
    assert suffix.suffix_array(np.array(text, np.int32), 2).tolist() == twins.suffix_array(text)


def test_suffix_array_against_another_implementation() -> None:
    pydivsufsort = pytest.importorskip("pydivsufsort")
    rng = np.random.default_rng(0)
    for text in (rng.integers(0, 200, 20_000), rng.zipf(1.3, 20_000) % 200, np.zeros(5000)):
        one = suffix.suffix_array(text.astype(np.int32), 200)
        assert (one == pydivsufsort.divsufsort(text.astype(np.uint8))).all()


@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.data())
def test_is_sorted_notices(text: list[int], data: st.DataObject) -> None:
    array = np.array(text, np.int32)
    suffixes = suffix.suffix_array(array, 4)
    one, other = (data.draw(st.integers(0, len(text) - 1)) for _ in range(2))
    suffixes[one], suffixes[other] = suffixes[other], suffixes[one]
    assert suffix.is_sorted(array, suffixes) == (one == other)
    suffixes[one] = data.draw(st.integers(-5, -1))
    assert not suffix.is_sorted(array, suffixes)


@given(
    st.lists(DOCUMENTS, min_size=1, max_size=3),
    TEXT,
    st.lists(st.integers(0, VOCAB - 1), max_size=20),
)
def test_retrieval(shards: list[list[int]], text: list[int], path: list[int]) -> None:
    """Every node of a path, whatever it says, is continued by its own longest match."""
    made = drafter([shard(tokens) for tokens in shards])
    made.begin(Context(text, VOCAB))
    pool = np.zeros((len(path) + 1, 12), np.int32)
    for i, token in enumerate(path, start=1):
        pool[i, :3] = token, i - 1, i
    for node in range(len(path) + 1):
        rows = made.expand(Frontier(np.array([node], np.int32), pool, text[-1] if text else -1))
        expected = twins.retrieved(
            shards,
            VOCAB,
            [*text, *path[:node]],
            retrieval.LONGEST_MATCH,
            retrieval.SHORTEST_MATCH,
            retrieval._FEW,
            RestDrafter.rows_per_node,
        )
        assert [tuple(row) for row in rows.tolist()] == [
            (node, token, retrieval._evidence(length, count, total, longest))
            for token, length, count, total, longest in expected
        ]
        assert (rows[:, 2] < retrieval.BUCKETS).all()


@given(DOCUMENTS, TEXT, st.lists(TEXT, max_size=4))
def test_a_text_that_grows(tokens: list[int], text: list[int], more: list[list[int]]) -> None:
    """Matches that are kept from step to step are those of a new request."""
    grown, frontier = (
        drafter([shard(tokens)]),
        Frontier(np.zeros(1, np.int32), np.zeros((4, 12), np.int32), -1),
    )
    grown.begin(Context(text, VOCAB))
    none = np.empty(0, np.int32)
    for part in more:
        text = text + part
        new = np.array(part, np.int32)
        grown.observe(Step.of_text(none, 0, [], new, None))
        fresh = drafter([shard(tokens)])
        fresh.begin(Context(text, VOCAB))
        assert grown.expand(frontier).tolist() == fresh.expand(frontier).tolist()


def test_many_occurrences_are_sampled_evenly() -> None:
    """300 times `0 1` and 100 times `0 2` after `3 3`: the shares hold, in a sample of 64."""
    text = ([3, 3, 1] * 300 + [3, 3, 2] * 100) * 4
    made = drafter([shard(text)])
    made.begin(Context([0, 3, 3], VOCAB))
    rows = made.expand(Frontier(np.zeros(1, np.int32), np.zeros((4, 12), np.int32), 3))
    buckets = {token: bucket for _, token, bucket in rows.tolist()}
    assert buckets[1] == retrieval._evidence(2, 48, 64, True)
    assert buckets[2] == retrieval._evidence(2, 16, 64, True)


def test_a_hole_in_the_text_matches_nothing() -> None:
    made = drafter([shard([0, 1, 2, 0, 1, 2])])
    made.begin(Context([0, -1, 1], VOCAB))
    frontier = Frontier(np.zeros(1, np.int32), np.zeros((4, 12), np.int32), 1)
    assert len(made.expand(frontier)) == 0
    made.begin(Context([0, 1], VOCAB))
    assert made.expand(frontier)[:, 1].tolist() == [2]


MUTATED = """
import numpy as np, random
from types import SimpleNamespace
from tests.kernels.test_suffix import VOCAB, drafter, shard
from hf_specplug.drafters.contract import Context, Frontier
rng = random.Random(0)
for round_ in range(150):
    store = shard([rng.randrange(VOCAB + 1) for _ in range(rng.randint(1, 200))])
    for _ in range(rng.randint(1, 30)):
        index = rng.randrange(len(store.tokens))
        extreme = [-(1 << 31), (1 << 31) - 1, -1, len(store.tokens), rng.randrange(-99, 999)]
        store.suffixes[index] = rng.choice(extreme)
        store.tokens[rng.randrange(len(store.tokens))] = rng.choice([0, 65535, VOCAB, VOCAB + 1])
    made = drafter([store, store])
    made.begin(Context([rng.randrange(VOCAB) for _ in range(20)], VOCAB))
    pool = np.zeros((12, 12), np.int32)
    for node in range(12):
        pool[node, :3] = rng.randrange(VOCAB), max(node - 1, 0), node
        rows = made.expand(Frontier(np.array([node], np.int32), pool, 0))
        assert ((rows[:, 1] >= 0) & (rows[:, 1] < VOCAB)).all()
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"])
def test_damaged_arrays_lead_nowhere(variable: str, tmp_path: Any) -> None:
    """With every index checked, over arrays that hold anything."""
    assert_harmless(MUTATED, variable, tmp_path)
