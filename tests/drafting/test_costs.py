"""Measured costs: right in spite of noise, bursts and load."""

from __future__ import annotations

import numpy as np
import pytest

from hf_specplug.drafting.costs import Costs

WIDTHS = (1, 6, 8, 12, 16, 24, 32, 48, 64)


def truth(width: int) -> float:
    return 0.010 + 0.0004 * (width - 1)


def feed(costs: Costs, steps: int, slow: float = 1.0, seed: int = 0, context: int = 100) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        width = int(rng.choice(WIDTHS[:5]))
        noise = 1 + 0.1 * rng.random() + 8.0 * (rng.random() < 0.08)  # jitter and bursts
        costs.observe(width, context, truth(width) * noise * slow)


def relative(costs: Costs, context: int = 100) -> list[float]:
    curve = costs.curve(context)
    return [seconds / curve[0] for seconds in curve]


EXPECTED = [truth(width) / truth(1) for width in WIDTHS]


def test_learns_the_curve_and_continues_it() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 300)
    np.testing.assert_allclose(costs.curve(100)[:5], [truth(w) for w in WIDTHS[:5]], rtol=0.06)
    np.testing.assert_allclose(relative(costs), EXPECTED, rtol=0.2)  # 24 to 64 are extrapolated
    assert [costs.known(width, 100) for width in WIDTHS] == [True] * 5 + [False] * 4


def test_a_busy_time_changes_no_width_against_another() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 200)
    for busy in range(3):  # three times as slow for 40 steps, in which only width 8 runs
        before = relative(costs)
        for _ in range(40):
            costs.observe(8, 100, 3 * truth(8))
            np.testing.assert_allclose(relative(costs), before, rtol=0.03)
        feed(costs, 60, seed=busy)
    np.testing.assert_allclose(relative(costs)[:5], EXPECTED[:5], rtol=0.06)


def test_a_lasting_change_is_taken_over() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 200)
    feed(costs, 300, slow=2.0)
    np.testing.assert_allclose(costs.curve(100)[:5], [2 * truth(w) for w in WIDTHS[:5]], rtol=0.1)
    feed(costs, 300, slow=0.5)
    np.testing.assert_allclose(costs.curve(100)[:5], [truth(w) / 2 for w in WIDTHS[:5]], rtol=0.1)


def test_a_longer_context_starts_with_what_is_known() -> None:
    costs = Costs(WIDTHS)
    feed(costs, 200)
    near = costs.curve(100)
    assert costs.curve(5000) == near
    feed(costs, 200, slow=1.25, context=5000)
    assert costs.curve(5000)[0] == pytest.approx(1.25 * truth(1), rel=0.06)
    assert costs.curve(100) == near


def test_nothing_known() -> None:
    costs = Costs(WIDTHS)
    assert not costs.known(1, 0)
    assert costs.curve(0) == sorted(costs.curve(0))
    costs.observe(5, 0, 1.0)  # not one of the widths
    assert not costs.known(5, 0)
