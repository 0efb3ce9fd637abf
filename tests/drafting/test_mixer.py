"""The mixer: its formula, its gradient, its learning and its calibration."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.contract import NO_NOISE, Drafter, Frontier, Int32
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import StateError
from hf_specplug.kernels import mixer as kernels
from hf_specplug.kernels import tree
from hf_specplug.telemetry.stats import Stats
from tests.helpers import twins

PRIORS = [0.02, 0.1, 0.3, 0.6, 0.95]
# the evidence of each of three drafters for a candidate: a bucket, or None
CANDIDATE = st.tuples(*[st.one_of(st.none(), st.integers(0, 4))] * 3).filter(any)
WEIGHT = st.floats(-2, 2)


def siblings(candidates: list[tuple[int | None, ...]]) -> tuple[np.ndarray, ...]:
    """Search arrays in which the root has these children: node i + 1 carries token i."""
    size = len(candidates) + 1
    pool = np.zeros((size, tree.COLUMNS), np.int32)
    probs = np.ones((size, tree.PROB_COLUMNS), np.float32)
    probs[:, tree.NOISE] = 0
    evidence = np.zeros((size, 3), np.int32)
    pool[0, tree.FIRST] = pool[0, tree.ROUND] = 1
    for i, buckets in enumerate(candidates, start=1):
        pool[i, [tree.TOKEN, tree.DEPTH, tree.NEXT]] = i - 1, 1, (i + 1) % size
        evidence[i] = [0 if bucket is None else bucket + 1 for bucket in buckets]
    table = np.zeros((6, 3), np.float32)
    table[1:, kernels.BUCKET_PRIOR] = PRIORS
    table[1:, kernels.BUCKET_LOGIT] = [math.log(p / (1 - p)) for p in PRIORS]
    table[1:, kernels.BUCKET_SET] = [0, 1, 2, 3, 3]
    return pool, probs, evidence, table


def twin_inputs(candidates: list[tuple[int | None, ...]]) -> tuple[list[twins.Named], list[int]]:
    named = [
        {d: PRIORS[bucket] for d, bucket in enumerate(buckets) if bucket is not None}
        for buckets in candidates
    ]
    sets = [max([0, 1, 2, 3, 3][b] for b in buckets if b is not None) for buckets in candidates]
    return named, sets


@given(
    st.lists(CANDIDATE, min_size=1, max_size=8),
    st.lists(WEIGHT, min_size=48, max_size=48),
    st.booleans(),
)
def test_mix_is_the_formula(candidates: list, numbers: list[float], noisy: bool) -> None:
    pool, probs, evidence, table = siblings(candidates)
    weights = np.array(numbers).reshape(4, 12)
    apm = Mixer([]).apm
    apm[0, ::3] *= 0.5
    probs[0, tree.PATH] = 0.5
    root = np.zeros(1, np.int32)
    noise = None
    if noisy:
        rows = np.random.default_rng(0).random((3, 8))  # row 1 is that of the next pick
        noise = (-np.log1p(-rows[1, : len(candidates)])).tolist()
    known = (rows, 1) if noisy else NO_NOISE
    kernels.mix(pool, probs, evidence, root, table, weights, apm, *known, np.empty((2, 12)))
    expected = twins.mixed(*twin_inputs(candidates), weights.tolist(), noise)
    np.testing.assert_allclose(probs[1:, tree.RAW], expected, rtol=1e-4)
    assert sum(expected) < 1
    refined = [twins.recalibrated(prob, apm[0].tolist()) for prob in expected]
    np.testing.assert_allclose(probs[1:, tree.PROB], refined, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(probs[1:, tree.PATH], 0.5 * probs[1:, tree.PROB], rtol=1e-6)


@given(
    st.lists(CANDIDATE, min_size=1, max_size=6),
    st.lists(WEIGHT, min_size=48, max_size=48),
    st.integers(0, 6),
    st.booleans(),
)
def test_learning_follows_the_gradient(
    candidates: list, numbers: list[float], token: int, noisy: bool
) -> None:
    """The step is the rate times the derivative of ln P(the target's pick).

    Without noise, the weights of the noise stay unchanged.
    """
    rows = np.random.default_rng(0).random((1, 8)) if noisy else np.empty((0, 0))
    noise = (-np.log1p(-rows[0, : len(candidates)])).tolist() if noisy else None
    pool, probs, evidence, table = siblings(candidates)
    weights = np.array(numbers).reshape(4, 12)
    named, sets = twin_inputs(candidates)

    def likelihood(changed: np.ndarray) -> float:
        probs = twins.mixed(named, sets, changed.tolist(), noise)
        return math.log(probs[token] if token < len(probs) else 1 - sum(probs))

    apm = Mixer([]).apm
    root = np.zeros(1, np.int32)
    room = np.empty((2, 12))
    kernels.mix(pool, probs, evidence, root, table, weights, apm, rows, 0, room)
    after = weights.copy()
    rates = np.array([0.5, 2.0, 0.1])
    emitted = np.array([token], np.int32)
    assert kernels.learn(pool, probs, evidence, emitted, table, after, apm, rates, room) == 1
    expected = np.zeros((4, 12))
    for place in np.ndindex(4, 12):
        near = weights.copy()
        near[place] += 1e-4
        above = likelihood(near)
        near[place] -= 2e-4
        rate = 2.0 if place[1] % 3 == 1 or place[1] >= 9 else 0.5
        expected[place] = rate * (above - likelihood(near)) / 2e-4
    np.testing.assert_allclose(after - weights, expected, rtol=2e-2, atol=2e-3)


class Loaded(Drafter):
    """Proposes one token per node, with a prior that is not its true probability."""

    name: ClassVar[str] = "loaded"

    def __init__(self, name: str, claims: float, token: int) -> None:
        self.name = name  # type: ignore[misc]
        self.token = token
        self.priors = np.array([claims], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        rows = [(node, self.token, 0) for node in frontier.nodes.tolist()]
        return np.array(rows, np.int32)


def fail(drafter: Drafter, error: Exception) -> None:
    raise error


def test_wrong_claims_are_seen_through() -> None:
    """One drafter has prior 0.9 and is right in 20 %, the other has 0.1 and is right in 70 %."""
    boaster, modest = Loaded("boaster", 0.9, 1), Loaded("modest", 0.1, 2)
    mixer = Mixer(["boaster", "modest"])
    search = TreeSearch([boaster, modest], mixer, 10, fail)
    rng = np.random.default_rng(0)
    late = Stats()
    for step in range(3000):
        draft = search.grow(0, 2, 1)
        truth = int(rng.choice([1, 2, 3], p=[0.2, 0.7, 0.1]))
        visited = [0] + [i + 1 for i, token in enumerate(draft.tokens) if token == truth]
        if step >= 1000:
            late.observe(draft, visited, search.names)
        search.learn(np.array([truth], np.int32))
    final = dict(zip(draft.tokens.tolist(), draft.probs.tolist(), strict=True))
    assert final[1] == pytest.approx(0.2, abs=0.1)
    assert final[2] == pytest.approx(0.7, abs=0.1)
    assert late.calibration().ece < 0.03


def test_pruned_candidates_teach_too() -> None:
    """The mixer also learns from a candidate that is never in the tree."""
    boaster, modest = Loaded("boaster", 0.9, 1), Loaded("modest", 0.1, 2)
    search = TreeSearch([boaster, modest], Mixer(["boaster", "modest"]), 10, fail)
    assert search.grow(0, 1, 1).tokens.tolist() == [1]
    for _ in range(300):
        search.grow(0, 1, 1)
        search.learn(np.array([2], np.int32))
    assert search.grow(0, 1, 1).tokens.tolist() == [2]


def test_nothing_is_learned_from_a_tree_that_was_not_grown() -> None:
    mixer = Mixer(["boaster"])
    search = TreeSearch([Loaded("boaster", 0.9, 1)], mixer, 10, fail)
    search.grow(0, 3, 1)
    search.grow(0, 0, 1)
    before = mixer.weights.copy()
    search.learn(np.array([1], np.int32))
    assert (mixer.weights == before).all()


def test_state_comes_back_by_name() -> None:
    one = Mixer(["context", "recycling"])
    one.weights += np.arange(one.weights.size).reshape(one.weights.shape)
    one.apm *= 0.5
    other = Mixer(["recycling", "third", "context"])
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(other.weights[:, 0:3], one.weights[:, 3:6])
    np.testing.assert_array_equal(other.weights[:, 6:9], one.weights[:, 0:3])
    np.testing.assert_array_equal(other.weights[:, 3:6], Mixer(["third"]).weights[:, 0:3])
    np.testing.assert_array_equal(other.weights[:, -1], one.weights[:, -1])
    np.testing.assert_array_equal(other.apm, one.apm)


@pytest.mark.parametrize(
    "state",
    [
        {"bias": np.zeros(3)},
        {"bias": np.full(4, np.nan)},
        {"apm": np.zeros((2, 2))},
        {"else": np.zeros(4)},
        {"context.weights": np.zeros((4, 2))},
    ],
)
def test_a_bad_state_changes_nothing(state: dict[str, np.ndarray]) -> None:
    mixer = Mixer(["context"])
    before = mixer.state_dict()
    with pytest.raises(StateError, match="of a mixer must be finite numbers"):
        mixer.load_state_dict(state)
    for key, array in mixer.state_dict().items():
        np.testing.assert_array_equal(array, before[key])
