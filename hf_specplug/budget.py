"""How many tokens one forward pass should check: as many as pay for their share of its time.

Expected tokens per second, from two things that are measured as decoding goes on: what a forward
pass of each width costs on this machine, and how far the drafts' probabilities can be trusted.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import OptionError
from hf_specplug.tree import DraftTree

MAX_NODES = 1024
WIDTHS = (1, 6, 8, 12, 16, 24, 32, 48, 64)
"""Tokens per forward pass to choose from; from 2 to 5 matrix kernels are mostly at their worst."""

_SAMPLES = 9  # timings kept per width; the lower quartile counts: other work only makes them longer
_FIRST = 3  # timings before a width is believed
_PROBE_EVERY = 64  # steps after which a width other than the best is timed again
_MEMORY = 0.98  # per step, of predicted and accepted tokens
_GAINS = (
    0.2,
    0.35,
    0.5,
    0.8,
    1.2,
    2.0,
    3.5,
)  # expected tokens: how far a promise is kept depends on it


class Budget:
    """Chooses the number of tokens per forward pass, the last accepted one included.

    Args:
        nodes: "auto", or a fixed number of tokens per forward pass (1: no draft), for measurements.

    Raises:
        OptionError: `nodes` is neither "auto" nor an int in [1, 1024].

    Attributes:
        limit: drafted tokens at most.

    Example:
        >>> Budget(32).limit
        31
    """

    def __init__(self, nodes: int | str = "auto") -> None:
        check_nodes(nodes)
        self._fixed = not isinstance(nodes, str)
        self.limit = (WIDTHS[-1] if isinstance(nodes, str) else nodes) - 1
        self._times: dict[int, deque[float]] = {width: deque(maxlen=_SAMPLES) for width in WIDTHS}
        self._steps = 0
        self._bucket = 0
        # predicted and accepted tokens by size of the promise, as if some promises had been kept
        self._kept = np.full((len(_GAINS) + 1, 2), 4.0)

    def fit(self, tree: DraftTree) -> DraftTree:
        """Cut a tree to the size that pays; to nothing if drafting does not."""
        if self._fixed or not len(tree):
            return tree
        paths = tree.path_probs()
        order = np.argsort(-paths, kind="stable")
        width = self._choose(np.cumsum(paths[order]))
        if width > len(tree):
            return tree
        return tree.select(np.sort(order[: width - 1]))

    def observe(self, tree: DraftTree, accepted: int, seconds: float) -> None:
        """Learn from a checked tree: how many of its tokens were right, and what the step took."""
        if self._fixed:
            return
        self._steps += 1
        width = len(tree) + 1
        if width in self._times:
            self._times[width].append(seconds)
        if len(tree):
            promise = float(tree.path_probs().sum())
            kept = self._kept[self._bucket]
            kept *= _MEMORY
            kept += promise, accepted

    def _choose(self, gains: NDArray[np.float32]) -> int:
        """The width of highest expected tokens per second; `gains[n - 1]` for n drafted tokens."""
        self._bucket = bisect(_GAINS, float(gains[min(len(gains), 11) - 1]))
        predicted, accepted = self._kept[self._bucket]
        trust = accepted / predicted
        rates: dict[int, float] = {}
        cost = 0.0
        for width in WIDTHS:
            if width > len(gains) + 1:
                break
            times = self._times[width]
            if width == 1 and len(times) < _FIRST:
                return 1
            if len(times) >= _FIRST:
                cost = max(cost, sorted(times)[len(times) // 4])
            # else: hope that it costs no more than a smaller one, and so find out
            rates[width] = (1.0 + (trust * float(gains[width - 2]) if width > 1 else 0.0)) / cost
        best = max(rates, key=rates.__getitem__)
        larger = [width for width in WIDTHS if width > max(best, 12)]
        self.limit = (larger or WIDTHS)[0 if larger else -1] - 1  # search for no more than needed
        if self._steps % _PROBE_EVERY == _PROBE_EVERY - 1:
            return self._neighbour(best, list(rates))
        return best

    def _neighbour(self, best: int, widths: list[int]) -> int:
        """A width whose cost may have changed: no draft, or one next to the best, in turn."""
        place = widths.index(best)
        others = [1, widths[max(place - 1, 0)], widths[min(place + 1, len(widths) - 1)]]
        return others[self._steps // _PROBE_EVERY % len(others)]


def check_nodes(nodes: int | str) -> None:
    """Raise OptionError unless `nodes` is "auto" or an int in [1, 1024]."""
    if nodes == "auto":
        return
    if not isinstance(nodes, int) or isinstance(nodes, bool) or not 1 <= nodes <= MAX_NODES:
        raise OptionError(
            f'nodes must be "auto" or a number from 1 (no draft) to {MAX_NODES}, not {nodes!r}'
        )
