"""Costs: widths compared within a moment, right in spite of noise, bursts and load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from hf_specplug.drafting.costs import Costs

WIDTHS = (1, 6, 8, 12, 16, 24, 32, 48, 64)


def truth(width: int) -> float:
    return 0.010 + 0.0004 * (width - 1)


def feed(
    costs: Costs,
    steps: int,
    slow: float = 1.0,
    seed: int = 0,
    context: int = 100,
    widths: Sequence[int] = WIDTHS[:5],
) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        width = int(rng.choice(widths))
        noise = 1 + 0.1 * rng.random() + 8.0 * (rng.random() < 0.08)  # jitter and bursts
        costs.observe(width, context, truth(width) * noise * slow)


EXPECTED = [truth(width) / truth(1) for width in WIDTHS]


def test_learns_the_curve_and_continues_it() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 300)
    np.testing.assert_allclose(costs.relative(100)[:5], EXPECTED[:5], rtol=0.06)
    np.testing.assert_allclose(costs.relative(100), EXPECTED, rtol=0.15)  # 24 on are guessed
    assert costs.curve(100)[0] == pytest.approx(truth(1), rel=0.1)
    assert [costs.known(place, 100) for place in range(9)] == [True] * 5 + [False] * 4


def test_widths_between_known_ones_lie_between_them() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 300, widths=(1, 32))
    np.testing.assert_allclose(costs.relative(100), EXPECTED, rtol=0.06)


def test_a_busy_time_changes_no_width_against_another() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 200)
    for busy in range(3):  # three times as slow for 40 steps, in which only width 8 runs
        before = costs.relative(100)
        for _ in range(40):
            costs.observe(8, 100, 3 * truth(8))
            np.testing.assert_allclose(costs.relative(100), before, rtol=0.03)
        feed(costs, 60, seed=busy)
    np.testing.assert_allclose(costs.relative(100)[:5], EXPECTED[:5], rtol=0.06)


def test_a_width_that_first_runs_in_a_busy_moment_is_not_thought_dear() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 40, widths=(1, 6))
    for width in (8, 8, 8, 12):  # another program starts together with these
        costs.observe(width, 100, 3 * truth(width))
    costs.observe(1, 100, 3 * truth(1))
    np.testing.assert_allclose(costs.relative(100), EXPECTED, rtol=0.25)
    feed(costs, 60, slow=3.0)
    np.testing.assert_allclose(costs.relative(100), EXPECTED, rtol=0.15)


def test_the_load_of_the_moment_scales_the_curve() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 200)
    for slow in (2.0, 0.5):
        feed(costs, 30, slow=slow)
        np.testing.assert_allclose(
            costs.curve(100)[:5], [1.05 * slow * truth(w) for w in WIDTHS[:5]], rtol=0.1
        )


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_noisy_timings_are_no_load(jitter: float) -> None:
    """Each pass takes another time; what is usual is learned."""
    costs = Costs(WIDTHS)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        width = int(rng.choice(WIDTHS[:5]))
        costs.observe(width, 100, truth(width) * np.exp(jitter * rng.standard_normal()))
    np.testing.assert_allclose(costs.relative(100)[:5], EXPECTED[:5], rtol=0.02 + jitter / 2)


def test_a_longer_context_starts_with_what_is_known() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 200)
    near = costs.relative(100)
    assert costs.relative(5000) == near
    for _ in range(50):
        costs.observe(1, 5000, 0.03)
        costs.observe(16, 5000, 0.09)
    assert costs.relative(5000)[4] == pytest.approx(3.0, rel=0.06)
    assert costs.relative(100) == near


def test_nothing_known() -> None:
    costs = Costs(WIDTHS)
    assert costs.load == 0.0
    assert not costs.known(0, 0)
    assert costs.relative(0) == sorted(costs.relative(0))
    costs.observe(5, 0, 1.0)  # not one of the widths
    assert costs.load == 0.0
