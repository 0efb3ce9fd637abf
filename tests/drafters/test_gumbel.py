"""The drafter gumbel names what noise favours, and nothing without it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.contract import TOP_K, Context, Drafter, Frontier, Int32, Step, TopK
from hf_specplug.drafters.gumbel import GumbelDrafter
from hf_specplug.drafters.hierarchy import HierarchyDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import StateError
from hf_specplug.kernels import gumbel as kernels
from tests.helpers import twins

VOCAB = 40
POOL = np.zeros((3, 7), np.int32)
POOL[1:, 0] = 5, 6
POOL[1:, 2] = 1, 2


def said(*tokens: int) -> tuple[GumbelDrafter, Context]:
    """A drafter of a model that said these tokens."""
    drafter, context = GumbelDrafter(), Context([], VOCAB)
    drafter.begin(context)
    context.append(tokens)
    drafter.observe(Step.of_text(np.empty(0, np.int32), 0, [], tokens, None))
    return drafter, context


@given(
    st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5, 40.0]), min_size=1, max_size=60),
    st.integers(0, 2**32 - 1),
)
def test_names_the_highest_quotients(weights: list[float], seed: int) -> None:
    noise = np.random.default_rng(seed).random(len(weights))
    noise[::7] = 0.0  # as it may be
    total = sum(weights)
    tokens, buckets = np.empty(kernels.FAVOURED, np.int32), np.empty(kernels.FAVOURED, np.int32)
    kernels.favoured(np.array(weights), total, noise, tokens, buckets)
    expected = twins.favoured(weights, total, noise.tolist())
    scores = [w / max(-math.log1p(-u), 1e-30) for w, u in zip(weights, noise, strict=True)]
    named = [token for token in tokens.tolist() if token >= 0]
    assert [scores[token] for token in named] == pytest.approx([score for _, score, _ in expected])
    assert len(set(named)) == len(named)
    assert buckets[: len(named)].tolist() == [bucket for *_, bucket in expected]


IDS = st.integers(-1, VOCAB + 1)


@given(
    st.lists(IDS, max_size=8),
    st.lists(
        st.lists(st.tuples(IDS, st.sampled_from([0.0, 0.125, 0.5])), min_size=3, max_size=3),
        max_size=5,
    ),
)
def test_counts_what_was_said_and_what_was_likely(
    tokens: list[int], likely: list[list[tuple[int, float]]]
) -> None:
    weights, total = np.zeros(VOCAB), np.zeros(1)
    kernels.count(weights, total, np.array(tokens, np.int32), 0.25)
    pairs = np.array(likely, np.float64).reshape(-1, 3, 2)
    ids, probs = pairs[..., 0].astype(np.int32), pairs[..., 1].astype(np.float32)
    kernels.count_likely(weights, total, ids, probs, np.arange(len(ids), dtype=np.int32))
    assert weights.tolist() == twins.frequencies(VOCAB, tokens, likely, 0.25)
    assert total[0] == weights.sum()


def test_each_depth_has_its_own_noise_and_none_is_silence() -> None:
    drafter, _ = said(1, 2, 2, 3)
    frontier = np.arange(3, dtype=np.int32)
    assert len(drafter.expand(Frontier(frontier, POOL, 3))) == 0
    noise = np.full((2, VOCAB), 0.9)
    noise[1, 1] = 0.001  # the root's row, as the circle begins there
    noise[0, 3] = 0.001
    rows = drafter.expand(Frontier(frontier, POOL, 3, (noise, 1)))
    first = {node: next(t for n, t, _ in rows.tolist() if n == node) for node in (0, 1)}
    assert first == {0: 1, 1: 3}
    assert 2 not in rows[:, 0]  # deeper than noise is known


def test_learns_from_what_was_found_likely_and_keeps_it() -> None:
    drafter, _ = said(1)
    ids = np.array([[7] + [-1] * (TOP_K - 1)], np.int32)
    probs = np.array([[0.9] + [0.0] * (TOP_K - 1)], np.float32)
    step = Step.of_text(np.ones(1, np.int32), 0, [0], [2], TopK(ids, probs))
    drafter.observe(step)
    assert drafter.weights[[1, 2, 7]].tolist() == pytest.approx([1.0, 1.0, 0.9])
    drafter.begin(Context([1], VOCAB))  # another request of the same model
    assert drafter.weights[7] > 0
    assert drafter.weights.nbytes == 8 * VOCAB
    drafter.begin(Context([1], VOCAB + 1))
    assert drafter.weights.sum() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "has the array weights"),
        ({"weights": np.zeros(3, np.float32)}, "float64"),
        ({"weights": np.zeros((3, 2))}, "float64"),
        ({"weights": np.array([0.5, math.nan])}, "finite"),
        ({"weights": np.array([0.5, -1.0])}, "not negative"),
        ({"weights": np.zeros(3), "more": np.zeros(3)}, "has the array weights"),
    ],
)
def test_states_that_do_not_fit(state: dict[str, Any], message: str) -> None:
    drafter, _ = said(1)
    before = drafter.weights.copy()
    with pytest.raises(StateError, match=message):
        drafter.load_state_dict(state)
    assert (drafter.weights == before).all()


def test_it_is_asked_only_where_noise_is_known() -> None:
    class Watched(GumbelDrafter):
        asked = 0

        def expand(self, frontier: Frontier) -> Int32:
            self.asked += 1
            return super().expand(frontier)

    drafter = Watched()
    search = TreeSearch([drafter], Mixer([drafter.name]), VOCAB, fail)
    search.begin(Context([1, 2, 2, 3], VOCAB))
    assert len(search.grow(3, 8, 4)) == 0
    assert drafter.asked == 0
    noise = np.random.default_rng(0).random((4, VOCAB))
    assert len(search.grow(3, 8, 4, noise=(noise, 0))) > 0
    assert drafter.asked > 0
    assert "noise" not in HierarchyDrafter(["context", "gumbel"]).needs


def fail(drafter: Drafter, error: Exception) -> None:
    raise error
