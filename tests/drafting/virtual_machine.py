"""A machine with a virtual clock, a true cost curve and other programs that load it.

It runs a budget on texts of known predictability, and counts tokens and time. All random numbers
are seeded, so that each run gives the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_specplug import DraftTree
from hf_specplug.drafting.budget import WIDTHS, Decision

PASS = 0.010  # seconds of a plain forward pass on the idle machine
USUAL_NOISE = 1.062  # mean of the noise of a pass


def flat(width: int) -> float:
    """The cost of a forward pass on an accelerator, in plain passes."""
    return 1.0 + 0.002 * (width - 1)


def cpu(width: int) -> float:
    """Two cores, float32, as measured."""
    measured = [9.6, 12.9, 13.8, 16.0, 21.8, 23.2, 24.5, 30.0, 36.0]
    return float(np.interp(width, [1, 6, 8, 12, 16, 24, 32, 48, 64], measured)) / 9.6


def dear(width: int) -> float:
    """Any draft costs half a plain pass."""
    return 1.0 if width == 1 else 1.5 + 0.03 * (width - 6)


def steep(width: int) -> float:
    """Each token costs nearly as much as a plain pass."""
    return 0.2 + 0.8 * width


CURVES = {"flat": flat, "cpu": cpu, "dear": dear, "steep": steep}

Load = Callable[[float, int], float]
"""The slowdown of a pass at a time in seconds and of a width."""


def idle(seconds: float, width: int) -> float:
    """No other program runs."""
    return 1.0


def bursts(seed: int, wide: bool = False) -> Load:
    """Other programs run at random: 0.1 to 10 s of load by a factor of 1.5 to 4, then of none.

    Args:
        seed: of the random durations and factors.
        wide: whether wide passes are slowed more than narrow ones.
    """
    rng = np.random.default_rng(seed)
    ends = np.cumsum(np.exp(rng.uniform(np.log(0.1), np.log(10.0), 4000)))
    factors = np.where(np.arange(4000) % 2, rng.uniform(1.5, 4.0, 4000), 1.0)

    def load(seconds: float, width: int) -> float:
        factor = float(factors[np.searchsorted(ends, seconds)])
        return 1.0 + (factor - 1.0) * (0.5 + 0.5 * min(width, 16) / 16 if wide else 1.0)

    return load


def drift(seconds: float, width: int) -> float:
    """A load that rises and falls by a factor of 4 within a minute."""
    return float(2.0 ** (1.0 - np.cos(seconds * 2 * np.pi / 60.0)))


@dataclass(frozen=True)
class Text:
    """A text of known predictability.

    Attributes:
        likely: the share of the steps in which a long continuation is likely.
        high: P(accepted | parent accepted) of the drafted tokens in these steps.
        low: the same in the other steps.
        overrated: by what factor drafts overstate the probabilities `low`.
    """

    likely: float
    high: float = 0.9
    low: float = 0.1
    overrated: float = 1.0


RANDOM = Text(0.0, low=0.03)
HARD = Text(0.02, low=0.1)  # 1.1 tokens per pass
OVERRATED = Text(0.0, low=0.1, overrated=3.0)
CHAT = Text(0.2, 0.8, 0.2)
CODE = Text(0.5, 0.9, 0.35)
COPY = Text(1.0, 0.95)


@dataclass
class Outcome:
    """What a run took.

    Attributes:
        tokens: generated.
        seconds: taken, drafting included.
        plain: seconds that plain generation takes for as many tokens at the same load.
        widths: of each forward pass.
    """

    tokens: int
    seconds: float
    plain: float
    widths: list[int]

    @property
    def ratio(self) -> float:
        """Speed over that of plain generation."""
        return self.plain / self.seconds


def chain(prob: float, size: int) -> DraftTree:
    """A chain; each token has probability `prob`, given that its parent is accepted."""
    return DraftTree(
        np.arange(size, dtype=np.int32),
        np.arange(-1, size - 1, dtype=np.int32),
        np.full(size, prob, np.float32),
        np.ones(size, np.uint16),
    )


class Machine:
    """Runs a budget.

    Args:
        curve: cost of a forward pass by width, in plain passes.
        load: its slowdown by time and width.
        seed: of timings and texts.
        asking: seconds that the search takes.
    """

    def __init__(
        self, curve: Callable[[int], float], load: Load = idle, seed: int = 0, asking: float = 0.0
    ) -> None:
        self.now = 0.0
        self.curve, self.load, self._asking = curve, load, asking
        self.prob = 0.0  # P(accepted | parent accepted) in the present step
        self._rng = np.random.default_rng(seed)

    def clock(self) -> float:
        """The time, in seconds."""
        return self.now

    def _pass(self, width: int) -> float:
        """Run a forward pass and return its seconds."""
        rng = self._rng
        noise = 1.0 + 0.04 * abs(rng.standard_normal())
        if rng.random() < 0.03:  # another program had the core for a moment
            noise += rng.exponential(1.0)
        seconds = PASS * self.curve(width) * self.load(self.now, width) * noise
        self.now += seconds
        return float(seconds)

    def run(self, budget: Any, text: Text, tokens: int) -> Outcome:
        """Generate `tokens` tokens of a text."""
        rng = self._rng
        outcome = Outcome(0, 0.0, 0.0, [])
        start = self.now
        while outcome.tokens < tokens:
            likely = rng.random() < text.likely
            prob = text.high if likely else text.low * rng.uniform(0.5, 1.5)
            asked = budget.ask()
            size = budget.limit if any(asked) else 0
            slow = self.load(self.now, 1)
            self.now += self._asking * slow * any(asked)
            self.prob = prob
            claimed = prob if likely else prob * text.overrated
            decision = budget.fit(
                chain(min(claimed, 0.99), size), 100, asked, [self._asking * slow]
            )
            tree = decision.tree
            accepted = 0
            while accepted < len(tree) and rng.random() < prob:
                accepted += 1
            budget.observe(decision, accepted, 100, self._pass(len(tree) + 1))
            outcome.widths.append(len(tree) + 1)
            outcome.tokens += accepted + 1
            outcome.plain += (accepted + 1) * PASS * slow * USUAL_NOISE
        outcome.seconds = self.now - start
        return outcome


class Oracle:
    """A budget that knows the probabilities, the cost curve and the load; nobody is asked."""

    limit = max(WIDTHS) - 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def ask(self) -> list[bool]:
        """Ask the drafter, which takes no time."""
        return [True]

    def fit(self, tree: DraftTree, context: int, asked: Any = (), drafting: Any = ()) -> Decision:
        """Cut a chain to the width of highest goodput."""
        machine, prob = self._machine, self._machine.prob

        def goodput(width: int) -> float:
            cost = machine.curve(width) * machine.load(machine.now, width)
            return (1 - prob**width) / (1 - prob) / cost

        return Decision(chain(prob, max(WIDTHS, key=goodput) - 1), asked)

    def observe(self, decision: Decision, accepted: int, context: int, seconds: float) -> None:
        """Learn nothing."""
