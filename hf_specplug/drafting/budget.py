"""How many tokens a forward pass verifies: the tree size that maximises goodput.

Goodput is the expected number of tokens per second, as in SmartSpec (Liu et al. 2024, arXiv
2406.14066), here for one request. The expected tokens follow from the probabilities of the draft.
The cost of each width is measured in plain forward passes; so is the time that drafting takes.

No draft must cost no more than plain decoding. Timing a width other than the best one loses time,
which is therefore limited to a small share.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafting.costs import Costs
from hf_specplug.drafting.goodput import after_rejection, outlook
from hf_specplug.drafting.scheduler import DrafterScheduler
from hf_specplug.errors import OptionError
from hf_specplug.tree import EMPTY, DraftTree

MAX_NODES = 1024
WIDTHS = (1, 6, 8, 12, 16, 24, 32, 48, 64)
"""Widths to choose from, in tokens per forward pass.

Widths from 2 to 5 are left out, because matrix kernels are mostly least efficient there.
"""
_OF_ROWS = (1, 2, 3, 4, *WIDTHS[1:])
"""Widths of a batch: several rows are not least efficient there."""

_PROBING = 0.005  # of the time may be lost by timing widths other than the best
_RISK = 0.5  # plain forward passes that timing a hardly known width may lose
_STALE = 32  # steps after which a width is timed again
_NEARLY = 0.99  # of the best goodput: take the largest such width, as long chains are underrated
_MEMORY = 0.98  # decay per step of the predicted and accepted tokens
_GAINS = (0.2, 0.35, 0.5, 0.8, 1.2, 2.0, 3.5)
"""Bucket edges in expected tokens: how well predictions hold depends on the expected number."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision of a budget on one draft; `Budget.observe` takes it with the outcome.

    Attributes:
        tree: the draft to verify.
        asked: which drafters were asked for it; empty if none was.
        drafting: seconds that each drafter took.
        searching: seconds from asking to this decision, the drafters' included.
        promise: the bucket of its expected tokens; None if they were not estimated.
        saved: seconds that the draft is expected to save; None if its width was a probe.
        replays: number of accepted tokens that the forward pass runs again.
    """

    tree: DraftTree
    asked: Sequence[bool] = ()
    drafting: Sequence[float] = ()
    searching: float = 0.0
    promise: int | None = None
    saved: float | None = 0.0
    replays: int = 0


class Budget:
    """Chooses the number of tokens per forward pass, including the last accepted token.

    Args:
        nodes: "auto", or a fixed number of tokens per forward pass, for measurements. 1 means no
            draft.
        drafters: number of drafters.
        padded: the widths to which the engine pads trees, in tokens; None if it does not pad.
        rows: number of rows of the batch: widths are tokens of a row.

    Raises:
        OptionError: `nodes` is neither "auto" nor an int in [1, 1024].

    Attributes:
        limit: maximum number of drafted tokens.

    Example:
        >>> Budget(32).limit
        31
    """

    def __init__(
        self,
        nodes: int | str = "auto",
        drafters: int = 1,
        padded: Sequence[int] | None = None,
        rows: int = 1,
    ) -> None:
        check_nodes(nodes)
        self._fixed = not isinstance(nodes, str)
        self._padded = padded is not None
        self._widths = (WIDTHS if rows == 1 else _OF_ROWS) if padded is None else tuple(padded)
        self.limit = (self._widths[:4][-1] if isinstance(nodes, str) else nodes) - 1
        self._costs = Costs(self._widths, rows)
        self._scheduler = DrafterScheduler(drafters, rows)
        self._asked_at = perf_counter()
        self._steps = 0
        self._last: dict[int, int] = {}  # step in which each width was last run
        self._allowance = 0.0  # time that probes may lose, in plain forward passes
        # predicted and accepted tokens by bucket; equal initial counts stand for exact predictions
        self._kept = [[4.0, 4.0] for _ in range(len(_GAINS) + 1)]

    def ask(self) -> list[bool]:
        """Which drafters to ask in this step."""
        if self._fixed:
            return self._scheduler.all
        self._asked_at = perf_counter()
        return self._scheduler.next()

    def fit(
        self,
        tree: DraftTree,
        context: int,
        asked: Sequence[bool] = (),
        drafting: Sequence[float] = (),
        replays: int | None = None,
    ) -> Decision:
        """Cut a tree to the size of highest goodput, which may be an empty tree.

        Args:
            tree: the tree as drafted.
            context: number of tokens before the tree.
            asked: which drafters were asked for it.
            drafting: seconds that each drafter took.
            replays: number of accepted tokens to run again; None if rejections cost no replay.
        """
        if self._fixed:
            return Decision(tree, asked, drafting, replays=replays or 0)
        promise: int | None = None
        saved: float | None = 0.0
        if len(tree):
            order, gains = _ranked(tree)
            if self._padded:  # padding costs the same as drafted tokens
                gains += gains[-1:] * (self._width(len(tree) + 1) - len(tree) - 1)
            width, promise, saved = self._choose(gains, context, replays)
            if width <= len(tree):
                tree = tree.select(np.sort(order[: width - 1])) if width > 1 else EMPTY
        searching = perf_counter() - self._asked_at
        return Decision(tree, asked, drafting, searching, promise, saved, replays or 0)

    def fit_rows(
        self,
        trees: Sequence[DraftTree],
        context: int,
        asked: Sequence[bool] = (),
        drafting: Sequence[float] = (),
    ) -> tuple[list[DraftTree], Decision]:
        """Cut the trees of a batch's rows to the width of highest goodput, the same for all rows.

        The expected tokens are the mean over the rows: rows whose drafts promise little do not
        widen the forward pass for the others.

        Args:
            trees: as drafted, one per row.
            context, asked, drafting: those of `fit`, for all rows together.

        Returns:
            (the trees to verify, the decision on all of them as one forest)
        """
        if self._fixed:
            return list(trees), Decision(DraftTree.forest(trees), asked, drafting)
        promise: int | None = None
        saved: float | None = 0.0
        cut = list(trees)
        if longest := max(len(tree) for tree in trees):
            ranked = [_ranked(tree) for tree in trees]
            padded = [own + (own or [0.0])[-1:] * (longest - len(own)) for _, own in ranked]
            gains = np.mean(padded, axis=0).tolist()
            width, promise, saved = self._choose(gains, context)
            cut = [
                tree if len(tree) < width else tree.select(np.sort(order[: width - 1]))
                for tree, (order, _) in zip(trees, ranked, strict=True)
            ]
        searching = perf_counter() - self._asked_at
        return cut, Decision(DraftTree.forest(cut), asked, drafting, searching, promise, saved)

    def observe(
        self,
        decision: Decision,
        accepted: int,
        context: int,
        seconds: float,
        width: int | None = None,
    ) -> None:
        """Learn from a verified tree.

        Args:
            decision: the result of `fit` for the tree.
            accepted: number of its tokens that were accepted.
            context: number of tokens before the tree.
            seconds: from the start of the forward pass to the end of observing, because the rows
                of a wider tree also take time after the pass.
            width: tokens of a row in the forward pass; by default the tree and its root.
        """
        if self._fixed:
            return
        tree = decision.tree
        self._steps += 1
        width = self._width(width or len(tree) + 1 + decision.replays)
        self._costs.observe(width, context, seconds)
        self._last[width] = self._steps
        if len(tree) and decision.promise is not None:
            kept = self._kept[decision.promise]
            kept[0] = _MEMORY * kept[0] + float(tree.path_probs().sum())
            kept[1] = _MEMORY * kept[1] + accepted
        if decision.saved is not None and any(decision.asked):
            self._scheduler.observe(
                decision.asked,
                decision.drafting,
                decision.searching,
                tree,
                decision.saved,
                seconds,
            )

    def _width(self, count: int) -> int:
        """The width, padded if the engine pads, at which `count` tokens are verified."""
        if not self._padded:
            return count
        return next((width for width in self._widths if width >= count), count)

    def _choose(
        self, gains: list[float], context: int, replays: int | None = None
    ) -> tuple[int, int | None, float | None]:
        """Choose the width of highest goodput.

        Args:
            gains: gains[k - 1] is the expected number of accepted tokens of k drafted tokens.
            context: number of tokens before the tree.
            replays: see `fit`.

        Returns:
            (tokens of tree and root, bucket of the expected tokens or None, seconds saved or None)
        """
        if self._costs.load == 0.0:  # widths are compared with plain passes: run one first
            return 1, None, None
        promise = bisect(_GAINS, gains[min(len(gains), 11) - 1])
        predicted, accepted = self._kept[promise]
        trust = accepted / predicted
        costs = self._costs.relative(context)
        if replays:
            drafted, saved = after_rejection(self._widths, costs, gains, trust, replays)
            return 1 + drafted, promise, saved * self._costs.load
        _, tokens, spent = outlook(self._widths, costs, gains, trust, replays)
        rates = [count / cost for count, cost in zip(tokens, spent, strict=True)]
        best, highest = len(rates) - 1, max(rates)
        while rates[best] < _NEARLY * highest:
            best -= 1
        if rates[best] < rates[0]:
            best = 0
        saved = (tokens[best] - spent[best]) * self._costs.load
        known = self._costs.known(0, context) and self._costs.known(best, context)
        if best and not known and not self._costs.comparable:
            return 1, None, None
        # let the next search grow at most one width above the best
        self.limit = self._widths[min(max(best, 2) + 1, len(self._widths) - 1)] - 1
        self._allowance += _PROBING * costs[best]
        probe = self._neighbour(best, len(rates))
        if probe != best:
            loss = costs[probe] - tokens[probe] / rates[best]
            if not self._costs.known(probe, context):
                loss = max(loss, _RISK)
            if loss <= self._allowance:
                self._allowance -= max(loss, 0.0)
                return self._widths[probe], promise, None  # it says nothing about the drafters
        return self._widths[best], promise, saved

    def _neighbour(self, best: int, count: int) -> int:
        """The index of the width to probe: plain or next to the best, if not run of late."""
        for place in (0, best - 1, best + 1):
            if (
                0 <= place < count
                and self._last.get(self._widths[place], -_STALE) <= self._steps - _STALE
            ):
                return place
        return best


def _ranked(tree: DraftTree) -> tuple[NDArray[np.intp], list[float]]:
    """(the nodes by path probability, best first; the sums of those of the best 1 to n)."""
    paths = tree.path_probs()
    order = np.argsort(-paths, kind="stable")
    return order, np.cumsum(paths[order]).tolist()


def check_nodes(nodes: int | str) -> None:
    """Raise OptionError unless `nodes` is "auto" or an int in [1, 1024]."""
    if nodes == "auto":
        return
    if not isinstance(nodes, int) or isinstance(nodes, bool) or not 1 <= nodes <= MAX_NODES:
        raise OptionError(
            f'nodes must be "auto" or a number from 1 (no draft) to {MAX_NODES}, not {nodes!r}'
        )
