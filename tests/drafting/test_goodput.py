"""Goodput where rejected tokens make the next forward pass longer."""

from __future__ import annotations

import numpy as np
import pytest

from hf_specplug import DraftTree
from hf_specplug.drafting.budget import WIDTHS, Budget
from hf_specplug.drafting.goodput import after_rejection, outlook

COSTS = [1.0 + 0.02 * (width - 1) for width in WIDTHS]


def gains(probability: float, count: int = 63) -> list[float]:
    """Expected accepted tokens of a chain whose tokens are each accepted with a probability."""
    return np.cumsum(probability ** np.arange(1, count + 1)).tolist()  # type: ignore[no-any-return]


def test_replays_cost_what_their_rows_cost() -> None:
    free = outlook(WIDTHS, COSTS, gains(0.5), 1.0)
    drafted, tokens, spent = outlook(WIDTHS, COSTS, gains(0.5), 1.0, replays=0)
    assert (drafted, tokens) == free[:2]
    assert spent[0] == free[2][0] == 1.0
    # of 5 tokens 31/32 are accepted; unless all are, the root and the accepted ones run again
    whole = 0.5**5
    expected = (1 - whole) * 1 + gains(0.5)[4] - 5 * whole
    assert spent[1] - free[2][1] == pytest.approx(0.02 * expected)
    sure = outlook(WIDTHS, COSTS, gains(1.0), 1.0, replays=0)
    assert sure[2] == pytest.approx(COSTS)


def test_rows_that_run_again_are_part_of_the_width() -> None:
    drafted, _, spent = outlook(WIDTHS, COSTS, gains(1.0), 1.0, replays=6)
    assert drafted[:4] == [0, 1, 5, 9]  # widths of 7, 8, 12 and 16 tokens
    assert spent[:3] == pytest.approx([1.12, 1.14, 1.22])


def test_the_more_runs_again_the_less_is_drafted() -> None:
    """Until a pass without a draft is best, after which nothing runs again."""
    found = [
        after_rejection(WIDTHS, COSTS, gains(0.6), 1.0, replays) for replays in (1, 4, 9, 16, 40)
    ]
    sizes, saved = zip(*found, strict=True)
    assert min(sizes[:3]) >= 3
    assert sizes[-1] == 0
    assert list(saved) == sorted(saved, reverse=True)
    assert saved[-1] == 0.0


def test_a_budget_passes_them_on() -> None:
    budget = Budget("auto")
    tree = DraftTree.path(np.arange(11, dtype=np.int32))
    for _ in range(12):
        for width in (1, 6, 8, 12):
            decision = budget.fit(DraftTree.path(np.arange(width - 1, dtype=np.int32)), 10)
            budget.observe(decision, 0, 10, 0.01 * (1 + 0.5 * (width - 1)))
    budget.ask()
    assert len(budget.fit(tree, 10, (True,)).tree) <= len(tree)
    decision = budget.fit(tree, 10, (True,), (0.0,), replays=5)
    assert decision.replays == 5
