"""The budget on a virtual machine: as fast as plain at least, beside other programs too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hf_specplug.drafting import budget as module
from hf_specplug.drafting.budget import Budget
from tests.drafting.virtual_machine import (
    CHAT,
    COPY,
    CURVES,
    HARD,
    RANDOM,
    Load,
    Machine,
    Oracle,
    Text,
    bursts,
    drift,
    idle,
)

LOADS: dict[str, Callable[[int], Load]] = {
    "idle": lambda seed: idle,
    "bursts": bursts,
    "uneven bursts": lambda seed: bursts(seed, wide=True),
    "drift": lambda seed: drift,
}
SEARCH = 0.0003  # seconds, 3 % of a plain pass


def machine(
    monkeypatch: pytest.MonkeyPatch, curve: str, load: str, seed: int, asking: float = SEARCH
) -> Machine:
    made = Machine(CURVES[curve], LOADS[load](100 + seed), seed, asking)
    monkeypatch.setattr(module, "perf_counter", made.clock)
    return made


@pytest.mark.parametrize("text", [HARD, CHAT], ids=["hard", "chat"])
@pytest.mark.parametrize("load", ["bursts", "drift"])
@pytest.mark.parametrize("curve", ["cpu", "dear"])
def test_a_changing_load_costs_little_of_what_drafting_gains(
    monkeypatch: pytest.MonkeyPatch, curve: str, load: str, text: Text
) -> None:
    shares = []
    for seed in range(12):
        alone = machine(monkeypatch, curve, "idle", seed).run(Budget(), text, 1500)
        beside = machine(monkeypatch, curve, load, seed).run(Budget(), text, 1500)
        shares.append(beside.ratio / alone.ratio)
    assert np.mean(shares) > 0.97
    assert min(shares) > 0.85  # the texts differ, too


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("curve", CURVES)
def test_plain_when_nothing_can_be_guessed(
    monkeypatch: pytest.MonkeyPatch, curve: str, load: str
) -> None:
    first, later = [], []
    for seed in range(6):
        made, budget = machine(monkeypatch, curve, load, seed), Budget()
        first.append(made.run(budget, RANDOM, 500).ratio)
        later.append(made.run(budget, RANDOM, 2000).ratio)
    assert min(first) > 0.97
    assert np.mean(later) > 0.99


@pytest.mark.parametrize("curve", ["flat", "cpu", "dear"])
def test_drafting_resumes_within_sixteen_steps(monkeypatch: pytest.MonkeyPatch, curve: str) -> None:
    for seed in range(8):
        made, budget = machine(monkeypatch, curve, "bursts", seed), Budget()
        made.run(budget, RANDOM, 1500)
        widths = made.run(budget, COPY, 150).widths
        assert max(widths[:20]) > 1  # the rarest asking, and a few plain passes to compare with
        assert len(widths) < 40


@pytest.mark.parametrize("curve", ["flat", "cpu", "dear"])
def test_a_short_answer_gains_at_once(monkeypatch: pytest.MonkeyPatch, curve: str) -> None:
    speeds = {"budget": 0.0, "oracle": 0.0}
    for seed in range(20):
        made = machine(monkeypatch, curve, "idle", seed, 0.0)
        speeds["budget"] += made.run(Budget(), COPY, 96).ratio
        made = machine(monkeypatch, curve, "idle", seed, 0.0)
        speeds["oracle"] += made.run(Oracle(made), COPY, 96).ratio
    assert speeds["budget"] > 0.7 * speeds["oracle"]


@pytest.mark.parametrize("curve", CURVES)
def test_a_short_answer_without_guesses_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, curve: str
) -> None:
    widths: list[int] = []
    for seed in range(20):
        made = machine(monkeypatch, curve, "idle", seed, 0.0)
        widths += made.run(Budget(), RANDOM, 30).widths
    assert np.mean([made.curve(width) for width in widths]) < 1.01
