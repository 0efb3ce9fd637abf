"""The budget: widths of highest goodput, no draft if none is worthwhile, and recovery from that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hf_specplug import DraftTree
from hf_specplug.drafting.budget import WIDTHS, Budget, Decision
from hf_specplug.drafting.scheduler import DrafterScheduler
from tests.drafting.virtual_machine import chain as draft


def run(budget: Budget, prob: float, cost: Callable[[int], float], steps: int) -> list[int]:
    """The widths chosen in the last 200 steps, with drafts whose probabilities are true."""
    rng = np.random.default_rng(0)
    widths = []
    for step in range(steps):
        decision = budget.fit(draft(prob, budget.limit), 100)
        tree = decision.tree
        accepted = 0
        while accepted < len(tree) and rng.random() < prob:
            accepted += 1
        noise = 10.0 if rng.random() < 0.1 else 1.0  # a slow step now and then
        noise *= 3.0 if steps // 3 < step < steps // 3 + 50 else 1.0  # a loaded machine
        budget.observe(decision, accepted, 100, cost(len(tree) + 1) * noise)
        widths.append(len(tree) + 1)
    return widths[-200:]


def flat(width: int) -> float:
    return 1.0


def steep(width: int) -> float:
    return 0.2 + 0.8 * width


def cpu(width: int) -> float:
    return 1.0 if width == 1 else 1.3 + 0.04 * (width - 6)


def usual(widths: list[int]) -> int:
    return max(set(widths), key=widths.count)


def test_large_where_checking_is_free() -> None:
    assert usual(run(Budget(), 0.98, flat, 600)) == 64


def test_nothing_where_drafts_are_wrong_or_dear() -> None:
    assert usual(run(Budget(), 0.02, cpu, 600)) == 1
    assert usual(run(Budget(), 0.3, steep, 600)) == 1


def test_the_best_width_in_between() -> None:
    for prob in (0.5, 0.7, 0.9):
        rates = {width: (1 - prob**width) / (1 - prob) / cpu(width) for width in WIDTHS}
        chosen = run(Budget(), prob, cpu, 800)
        assert np.mean([rates[width] for width in chosen]) > 0.95 * max(rates.values())


def test_promises_that_are_not_kept_are_trusted_less() -> None:
    budget = Budget()
    for _ in range(600):
        decision = budget.fit(draft(0.9, budget.limit), 100)
        budget.observe(decision, 0, 100, cpu(len(decision.tree) + 1))
    assert len(budget.fit(draft(0.9, budget.limit), 100).tree) == 0


def test_it_notices_when_drafting_is_worthwhile_again() -> None:
    budget = Budget()
    run(budget, 0.02, cpu, 500)
    assert usual(run(budget, 0.9, cpu, 400)[-100:]) > 6


def test_the_cut_tree_keeps_the_likeliest_nodes() -> None:
    budget = Budget()
    for width in (1, 6, 1, 8, 1, 6, 1, 8, 1, 6, 1, 8):
        decision = Decision(draft(0.5, width - 1))
        budget.observe(decision, 0, 100, 1.0 if width <= 6 else 100.0)
    tree = DraftTree(
        np.arange(9, dtype=np.int32),
        np.array([-1, -1, 0, 0, 1, 2, -1, -1, -1], np.int32),
        np.array([0.5, 0.4, 0.9, 0.1, 0.2, 0.9, 0.01, 0.02, 0.03], np.float32),
        np.ones(9, np.uint16),
    )
    assert budget.fit(tree, 100).tree.tokens.tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("nodes", [1, 5, 100])
def test_fixed(nodes: int) -> None:
    budget = Budget(nodes)
    assert budget.limit == nodes - 1
    tree = draft(0.01, 7)
    assert budget.fit(tree, 100).tree is tree


def asked(
    scheduler: DrafterScheduler,
    steps: int,
    saved: float,
    spent: tuple[float, float],
    sources: int,
    searching: float = 0.0,
) -> np.ndarray:
    """How often each of two drafters is asked if trees of `sources` save `saved` seconds.

    A forward pass takes a second; the search takes `searching` seconds beside its drafters.
    """
    count = np.zeros(2)
    tree = draft(0.5, 4)
    tree.sources[:] = sources
    for _ in range(steps):
        mask = scheduler.next()
        count += mask
        if any(mask):
            seconds = [t * m for t, m in zip(spent, mask, strict=True)]
            scheduler.observe(mask, seconds, sum(seconds) + searching, tree, saved, 1.0)
    return count


def test_drafters_are_asked_as_often_as_they_earn() -> None:
    scheduler = DrafterScheduler(2)
    assert asked(scheduler, 320, 0.1, (0.01, 0.01), 3).tolist() == [320, 320]
    asked(scheduler, 100, 0.1, (0.01, 0.01), 1)
    only_first = asked(scheduler, 320, 0.1, (0.01, 0.01), 1)
    assert only_first[0] == 320
    assert only_first[1] < 50
    asked(scheduler, 100, 0.0, (0.01, 0.01), 3)
    assert (asked(scheduler, 320, 0.0, (0.01, 0.01), 3) == 40).all()  # 0.2 % of the time at most
    assert (asked(scheduler, 64, 0.1, (0.01, 0.01), 3) > 40).all()  # drafting is worthwhile again


def test_what_costs_nothing_is_always_asked() -> None:
    assert asked(DrafterScheduler(2), 100, 0.0, (0.0001, 0.5), 3).tolist()[0] == 100


def test_nobody_is_asked_often_if_the_search_takes_more_than_it_saves() -> None:
    """0.3 % of the time for the search, but 16 steps at the most until somebody is asked."""
    for searching, often in ((0.002, 320), (0.02, 60), (0.1, 40)):
        scheduler = DrafterScheduler(2)
        asked(scheduler, 100, 0.0, (0.0001, 0.0001), 3, searching)
        count = asked(scheduler, 320, 0.0, (0.0001, 0.0001), 3, searching)
        assert 20 <= count[0] <= often
        assert count[0] * searching <= 0.003 * 320 or count[0] == 20
        assert asked(scheduler, 64, 0.2, (0.0001, 0.0001), 3, searching)[0] > 40


def test_an_expensive_drafter_must_earn_more() -> None:
    count = asked(DrafterScheduler(2), 320, 0.1, (0.01, 0.2), 3)
    assert count[0] == 320
    assert count[1] < 50


def test_compiling_kernels_at_the_first_call_is_no_cost() -> None:
    scheduler = DrafterScheduler(2)
    tree = draft(0.5, 4)
    tree.sources[:] = 3
    scheduler.observe(scheduler.next(), [5.0, 5.0], 10.0, tree, 0.1, 1.0)
    assert asked(scheduler, 100, 0.1, (0.01, 0.01), 3).tolist() == [100, 100]
