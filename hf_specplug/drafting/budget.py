"""How many tokens one forward pass should check, and which drafters to ask: what pays, is done.

All in one currency, seconds saved: expected tokens from the drafts' probabilities, against what a
forward pass of each width and the drafting itself were measured to cost (SmartSpec's goodput, for
one request).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafting.costs import Costs
from hf_specplug.errors import OptionError
from hf_specplug.tree import DraftTree

MAX_NODES = 1024
WIDTHS = (1, 6, 8, 12, 16, 24, 32, 48, 64)
"""Tokens per forward pass to choose from; from 2 to 5 matrix kernels are mostly at their worst."""

_PROBE_EVERY = 64  # steps after which a width other than the best is timed again
_NEARLY = 0.99  # of the best rate: take the largest such width, as long chains are underrated
_MEMORY = 0.98  # per step, of predicted and accepted tokens
_GAINS = (0.2, 0.35, 0.5, 0.8, 1.2, 2.0, 3.5)
"""Expected tokens: how far a promise is kept depends on its size."""


class Budget:
    """Chooses the number of tokens per forward pass, the last accepted one included.

    Args:
        nodes: "auto", or a fixed number of tokens per forward pass (1: no draft), for measurements.
        drafters: how many there are.
        padded: the widths to which trees are padded, where they are.

    Raises:
        OptionError: `nodes` is neither "auto" nor an int in [1, 1024].

    Attributes:
        limit: drafted tokens at most.

    Example:
        >>> Budget(32).limit
        31
    """

    def __init__(
        self, nodes: int | str = "auto", drafters: int = 1, padded: Sequence[int] | None = None
    ) -> None:
        check_nodes(nodes)
        self._fixed = not isinstance(nodes, str)
        self._padded = padded is not None
        self._widths = WIDTHS if padded is None else tuple(padded)
        self.limit = (self._widths[3] if isinstance(nodes, str) else nodes) - 1
        self._costs = Costs(self._widths)
        self._turns = DrafterScheduler(drafters)
        self._steps = 0
        self._bucket = 0
        self._saved: float | None = 0.0
        # predicted and accepted tokens by size of the promise, as if some promises had been kept
        self._kept = np.full((len(_GAINS) + 1, 2), 4.0)

    def ask(self) -> list[bool]:
        """Which drafters to ask in this step."""
        return self._turns.all if self._fixed else self._turns.next()

    def fit(self, tree: DraftTree, context: int) -> DraftTree:
        """Cut a tree to the size that pays; to nothing if drafting does not."""
        self._saved = 0.0  # of the step before, which may have ended in an error
        if self._fixed or not len(tree):
            return tree
        paths = tree.path_probs()
        order = np.argsort(-paths, kind="stable")
        gains = np.cumsum(paths[order])
        if self._padded:  # what is not filled costs the same
            gains = np.pad(gains, (0, self._width(len(tree) + 1) - len(tree) - 1), mode="edge")
        width = self._choose(gains, context)
        if width > len(tree):
            return tree
        return tree.select(np.sort(order[: width - 1]))

    def observe(
        self,
        tree: DraftTree,
        accepted: int,
        context: int,
        seconds: float,
        asked: Sequence[bool] = (),
        drafting: Sequence[float] = (),
    ) -> None:
        """Learn from a checked tree.

        Args:
            accepted: how many of its tokens were right.
            context: tokens before it.
            seconds: what the forward pass took.
            asked: which drafters were asked for it, and
            drafting: the seconds that each took.
        """
        if self._fixed:
            return
        self._steps += 1
        self._costs.observe(self._width(len(tree) + 1), context, seconds)
        if any(asked) and self._saved is not None:
            self._turns.observe(asked, drafting, tree, self._saved, seconds)
        if len(tree):
            promise = float(tree.path_probs().sum())
            kept = self._kept[self._bucket]
            kept *= _MEMORY
            kept += promise, accepted

    def _width(self, count: int) -> int:
        """The width at which `count` tokens are checked."""
        if not self._padded:
            return count
        return next((width for width in self._widths if width >= count), count)

    def _choose(self, gains: NDArray[np.float32], context: int) -> int:
        """The width of highest expected tokens per second; `gains[n - 1]` for n drafted tokens."""
        if not self._costs.known(1, context):
            return 1
        self._bucket = bisect(_GAINS, float(gains[min(len(gains), 11) - 1]))
        predicted, accepted = self._kept[self._bucket]
        trust = accepted / predicted
        seconds = self._costs.curve(context)
        tokens = [1.0]
        for width in self._widths[1:]:
            if width > len(gains) + 1:
                break
            tokens.append(1.0 + trust * float(gains[width - 2]))
        rates = [count / cost for count, cost in zip(tokens, seconds, strict=False)]
        enough = _NEARLY * max(rates)
        best = max(place for place, rate in enumerate(rates) if rate >= enough)
        if rates[0] >= enough and rates[best] < rates[0]:
            best = 0
        self._saved = tokens[best] * seconds[0] - seconds[best]
        # search for no more than one size above
        self.limit = self._widths[min(max(best, 2) + 1, len(self._widths) - 1)] - 1
        if self._steps % _PROBE_EVERY == _PROBE_EVERY - 1:
            best = self._neighbour(best, len(rates))
            self._saved = None  # says nothing of the drafters
        return self._widths[best]

    def _neighbour(self, best: int, count: int) -> int:
        """A width whose cost may have changed: no draft, or one next to the best, in turn."""
        others = [0, max(best - 1, 0), min(best + 1, count - 1)]
        return others[self._steps // _PROBE_EVERY % len(others)]


class DrafterScheduler:
    """Asks each drafter as often as it earns: the seconds it saves, against those it takes.

    Args:
        count: how many drafters there are.
    """

    _MEMORY = 0.9  # per time asked
    _RAREST = 16  # steps between two times, while a drafter earns nothing
    _FREE = 0.002  # of a forward pass: cheaper ones are always asked, if only to learn

    def __init__(self, count: int) -> None:
        self.all = [True] * count
        self._saved = [0.0] * count
        self._spent = [0.0] * count
        self._started = [False] * count
        self._every = [1] * count
        self._step = 0

    def next(self) -> list[bool]:
        """Whose turn it is."""
        self._step += 1
        return [self._step % every == 0 for every in self._every]

    def observe(
        self,
        asked: Sequence[bool],
        spent: Sequence[float],
        tree: DraftTree,
        saved: float,
        step: float,
    ) -> None:
        """Credit what a tree saves (seconds) to those who named its nodes, by probability."""
        shares = _shares(tree, len(asked)) if saved else [0.0] * len(asked)
        for d, was_asked in enumerate(asked):
            if not was_asked:
                continue
            if not self._started[d]:  # its kernels were compiled or loaded: once is no cost
                self._started[d] = True
                continue
            earned = shares[d] * saved
            self._saved[d] += (1 - self._MEMORY) * (earned - self._saved[d])
            self._spent[d] += (1 - self._MEMORY) * (spent[d] - self._spent[d])
            pays = max(self._saved[d], earned) > self._spent[d]
            if pays or self._spent[d] < self._FREE * step:
                self._every[d] = 1
            else:
                self._every[d] = min(2 * self._every[d], self._RAREST)


def _shares(tree: DraftTree, drafters: int) -> list[float]:
    """Each drafter's part in a tree: path probability of its nodes; with others, it shares them."""
    paths = tree.path_probs()
    named = (tree.sources[:, None] >> np.arange(drafters, dtype=np.uint16)) & 1
    credit = (paths / named.sum(axis=1)) @ named
    return (credit / paths.sum()).tolist()  # type: ignore[no-any-return]


def check_nodes(nodes: int | str) -> None:
    """Raise OptionError unless `nodes` is "auto" or an int in [1, 1024]."""
    if nodes == "auto":
        return
    if not isinstance(nodes, int) or isinstance(nodes, bool) or not 1 <= nodes <= MAX_NODES:
        raise OptionError(
            f'nodes must be "auto" or a number from 1 (no draft) to {MAX_NODES}, not {nodes!r}'
        )
