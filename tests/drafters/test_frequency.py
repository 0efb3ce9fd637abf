"""The drafter frequency: the most frequent tokens of lately, counted with decay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.contract import Context, Frontier, Step
from hf_specplug.drafters.frequency import DECAY, PROMPT, FrequencyDrafter
from hf_specplug.errors import StateError
from hf_specplug.kernels import frequency as kernels
from tests.helpers import context_twins

VOCAB = 40
ROOT = Frontier(np.zeros(1, np.int32), np.zeros((1, 7), np.int32), 0)


def said(*tokens: int) -> FrequencyDrafter:
    """A drafter of a model that said these tokens."""
    drafter = FrequencyDrafter()
    drafter.begin(Context([], VOCAB))
    drafter.observe(Step.of_text(np.empty(0, np.int32), 0, [], tokens, None))
    return drafter


def empty() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, scale and top of nothing counted."""
    top = np.full(kernels.RANKS, -1, np.int32)
    return np.zeros(VOCAB), np.array([1.0, 0.0]), top


# decays of which floats hold all powers that occur exactly
@given(st.lists(st.integers(-2, VOCAB + 2), max_size=40), st.sampled_from([0.5, 1.0]))
def test_names_the_most_frequent(tokens: list[int], decay: float) -> None:
    counts, out = empty(), np.empty((kernels.RANKS, 3), np.int32)
    kernels.count(*counts, np.array(tokens, np.int32), decay)
    rows = out[: kernels.expand(*counts, out)]
    expected = context_twins.frequent(tokens, decay, VOCAB)
    assert rows[:, 1:].tolist() == [list(row) for row in expected]
    assert not rows[:, 0].any()


def test_the_scale_never_overflows() -> None:
    counts = empty()
    tokens = np.random.default_rng(0).integers(0, VOCAB, 3000).astype(np.int32)
    kernels.count(*counts, tokens, 0.8)  # 0.8 ** -3000 is beyond float64
    weights, scale, top = counts
    assert np.isfinite(weights).all()
    assert scale[1] == pytest.approx(weights.sum())
    assert weights[top].tolist() == sorted(weights.tolist(), reverse=True)[: kernels.RANKS]
    weight = sum(0.8**age for age, token in enumerate(tokens[::-1]) if token == tokens[-1])
    assert weights[tokens[-1]] / scale[0] == pytest.approx(weight)


def test_counts_prompts_and_outputs_across_requests() -> None:
    drafter = said(3, 3, 4)
    assert drafter.expand(ROOT)[:, 1].tolist() == [3, 4]
    prompt = [5] * (PROMPT + 100)
    drafter.begin(Context(prompt, VOCAB))
    assert drafter.expand(ROOT)[:, 1].tolist() == [5, 3, 4]
    counted = drafter.state_dict()["weights"]
    assert counted[5] == pytest.approx((1 - DECAY**PROMPT) / (1 - DECAY))
    drafter.begin(Context([7], VOCAB + 1))
    assert drafter.expand(ROOT)[:, 1].tolist() == [7]


def test_a_state_goes_on_as_if_nothing_had_happened() -> None:
    tokens = np.random.default_rng(1).integers(0, VOCAB, 200).tolist()
    whole, first = said(*tokens), said(*tokens[:120])
    fresh = FrequencyDrafter()
    fresh.load_state_dict(first.state_dict())
    fresh.begin(Context([], VOCAB))
    fresh.observe(Step.of_text(np.empty(0, np.int32), 0, [], tokens[120:], None))
    assert fresh.expand(ROOT).tolist() == whole.expand(ROOT).tolist()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "has the array weights"),
        ({"weights": np.zeros(3, np.float32)}, "float64"),
        ({"weights": np.array([0.5, math.nan])}, "finite"),
        ({"weights": np.array([0.5, -1.0])}, "not negative"),
    ],
)
def test_states_that_do_not_fit(state: dict[str, Any], message: str) -> None:
    drafter = said(1)
    with pytest.raises(StateError, match=message):
        drafter.load_state_dict(state)
    assert drafter.expand(ROOT)[:, 1].tolist() == [1]
