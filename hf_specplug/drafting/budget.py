"""How many tokens a forward pass verifies: the tree size that maximises goodput.

Goodput is the expected number of tokens per second, as in SmartSpec (Liu et al. 2024, arXiv
2406.14066), here for one request. The expected tokens follow from the probabilities of the draft.
The seconds are measured, by width of the forward pass; so is the time that drafting takes.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafting.costs import Costs
from hf_specplug.drafting.scheduler import DrafterScheduler
from hf_specplug.errors import OptionError
from hf_specplug.tree import DraftTree

MAX_NODES = 1024
WIDTHS = (1, 6, 8, 12, 16, 24, 32, 48, 64)
"""Widths to choose from, in tokens per forward pass.

Widths from 2 to 5 are left out, because matrix kernels are mostly least efficient there.
"""

_PROBE_EVERY = 64  # steps after which a width other than the best is timed again
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
        promise: the bucket of its expected tokens; None if they were not estimated.
        saved: seconds that the draft is expected to save; None if its width was a probe.
    """

    tree: DraftTree
    asked: Sequence[bool] = ()
    drafting: Sequence[float] = ()
    promise: int | None = None
    saved: float | None = 0.0


class Budget:
    """Chooses the number of tokens per forward pass, including the last accepted token.

    Args:
        nodes: "auto", or a fixed number of tokens per forward pass, for measurements. 1 means no
            draft.
        drafters: number of drafters.
        padded: the widths to which the engine pads trees, in tokens; None if it does not pad.

    Raises:
        OptionError: `nodes` is neither "auto" nor an int in [1, 1024].

    Attributes:
        limit: maximum number of drafted tokens.

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
        self.limit = (self._widths[:4][-1] if isinstance(nodes, str) else nodes) - 1
        self._costs = Costs(self._widths)
        self._scheduler = DrafterScheduler(drafters)
        self._steps = 0
        # predicted and accepted tokens by bucket; equal initial counts stand for exact predictions
        self._kept = np.full((len(_GAINS) + 1, 2), 4.0)

    def ask(self) -> list[bool]:
        """Which drafters to ask in this step."""
        return self._scheduler.all if self._fixed else self._scheduler.next()

    def fit(
        self,
        tree: DraftTree,
        context: int,
        asked: Sequence[bool] = (),
        drafting: Sequence[float] = (),
    ) -> Decision:
        """Cut a tree to the size of highest goodput, which may be an empty tree.

        Args:
            tree: the tree as drafted.
            context: number of tokens before the tree.
            asked: which drafters were asked for it.
            drafting: seconds that each drafter took.
        """
        if self._fixed or not len(tree):
            return Decision(tree, asked, drafting)
        order, gains = _ranked(tree)
        if self._padded:  # padding costs the same as drafted tokens
            gains = np.pad(gains, (0, self._width(len(tree) + 1) - len(tree) - 1), mode="edge")
        width, promise, saved = self._choose(gains, context)
        if width <= len(tree):
            tree = tree.select(np.sort(order[: width - 1]))
        return Decision(tree, asked, drafting, promise, saved)

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
        if self._fixed or not any(len(tree) for tree in trees):
            return list(trees), Decision(DraftTree.forest(trees), asked, drafting)
        ranked = [_ranked(tree) for tree in trees]
        longest = max(len(tree) for tree in trees)
        gains = np.zeros(longest, np.float32)
        for _, own in ranked:
            if len(own):
                gains += np.pad(own, (0, longest - len(own)), mode="edge") / len(trees)
        width, promise, saved = self._choose(gains, context)
        cut = [
            tree if len(tree) < width else tree.select(np.sort(order[: width - 1]))
            for tree, (order, _) in zip(trees, ranked, strict=True)
        ]
        return cut, Decision(DraftTree.forest(cut), asked, drafting, promise, saved)

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
            seconds: duration of the forward pass.
            width: tokens of a row in the forward pass; by default the tree and its root.
        """
        if self._fixed:
            return
        tree = decision.tree
        self._steps += 1
        self._costs.observe(self._width(width or len(tree) + 1), context, seconds)
        if any(decision.asked) and decision.saved is not None:
            self._scheduler.observe(
                decision.asked, decision.drafting, tree, decision.saved, seconds
            )
        if len(tree) and decision.promise is not None:
            kept = self._kept[decision.promise]
            kept *= _MEMORY
            kept += float(tree.path_probs().sum()), accepted

    def _width(self, count: int) -> int:
        """The width, padded if the engine pads, at which `count` tokens are verified."""
        if not self._padded:
            return count
        return next((width for width in self._widths if width >= count), count)

    def _choose(
        self, gains: NDArray[np.float32], context: int
    ) -> tuple[int, int | None, float | None]:
        """Choose the width of highest goodput.

        Args:
            gains: float32[n]; gains[k - 1] is the expected number of accepted tokens of k drafted
                tokens.
            context: number of tokens before the tree.

        Returns:
            (width, bucket of the expected tokens or None, seconds expected to be saved or None)
        """
        if not self._costs.known(1, context):
            return 1, None, 0.0
        promise = bisect(_GAINS, float(gains[min(len(gains), 11) - 1]))
        predicted, accepted = self._kept[promise]
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
        saved: float | None = tokens[best] * seconds[0] - seconds[best]
        # let the next search grow at most one width above the best
        self.limit = self._widths[min(max(best, 2) + 1, len(self._widths) - 1)] - 1
        if self._steps % _PROBE_EVERY == _PROBE_EVERY - 1:
            best = self._neighbour(best, len(rates))
            saved = None  # a probe says nothing about the drafters
        return self._widths[best], promise, saved

    def _neighbour(self, best: int, count: int) -> int:
        """The index of the width to probe: that of no draft or one next to the best, in turn."""
        others = [0, max(best - 1, 0), min(best + 1, count - 1)]
        return others[self._steps // _PROBE_EVERY % len(others)]


def _ranked(tree: DraftTree) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """(the nodes by path probability, best first; float32[n], the sums of the best 1 to n)."""
    paths = tree.path_probs()
    order = np.argsort(-paths, kind="stable")
    return order, np.cumsum(paths[order])


def check_nodes(nodes: int | str) -> None:
    """Raise OptionError unless `nodes` is "auto" or an int in [1, 1024]."""
    if nodes == "auto":
        return
    if not isinstance(nodes, int) or isinstance(nodes, bool) or not 1 <= nodes <= MAX_NODES:
        raise OptionError(
            f'nodes must be "auto" or a number from 1 (no draft) to {MAX_NODES}, not {nodes!r}'
        )
