"""Live-context suffix matching: what followed the longest suffix of this very text before.

The idea of prompt lookup decoding (Saxena 2023), with the longest match instead of a fixed n-gram,
all earlier occurrences instead of the first, and shorter matches as a back-off (as in PPM
compression).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hf_specplug.drafters.base import Context, Drafter, Float32, Frontier, Int32, Step, register
from hf_specplug.kernels import ngram

ORDER = 17
"""Longest n-gram counted: a match of up to 16 tokens and the token after it. More did not pay."""

_LONGEST = np.array(
    # P(accepted) at the longest match; rows: length 1, 2, 3, 4, 5-6, 7-9, 10-15, 16+;
    # columns: share of the occurrences < .1, < .25, < .5, < .8, more.
    # Measured on recorded answers of 20 tasks; cells without data continue their neighbours.
    [
        [0.044, 0.048, 0.107, 0.185, 0.359],
        [0.030, 0.063, 0.150, 0.186, 0.567],
        [0.030, 0.094, 0.120, 0.216, 0.586],
        [0.030, 0.100, 0.120, 0.200, 0.654],
        [0.030, 0.100, 0.120, 0.234, 0.701],
        [0.030, 0.100, 0.120, 0.235, 0.764],
        [0.030, 0.100, 0.150, 0.300, 0.840],
        [0.030, 0.100, 0.200, 0.400, 0.964],
    ]
)
_SHORTER = np.array([0.026, 0.047, 0.038, 0.097, 0.095, 0.040, 0.091, 0.091])
_LATEST, _EARLIER = 1.25, 0.8
"""The most recent continuation is right more often than an older one (.132 against .079)."""


def _priors() -> Float32:
    longest = np.stack([_LONGEST * _EARLIER, _LONGEST * _LATEST], axis=-1)
    longest[:, -1, :] = _LONGEST[:, -1, None]  # (nearly) one continuation: nothing to tell apart
    shorter = np.stack([_SHORTER * _EARLIER, _SHORTER * _LATEST], axis=-1)
    return np.concatenate([longest.ravel(), shorter.ravel()]).astype(np.float32)


@register
class ContextDrafter(Drafter):
    """Continues each path by what followed its longest suffix in prompt and output so far.

    Example:
        after the text `1 2 3 9 1 2`, the root's longest suffix seen before is `1 2`, followed by 3:
        the root gets the child 3, that one gets 9, and so on.
    """

    name: ClassVar[str] = "context"
    rows_per_node: ClassVar[int] = 24

    def __init__(self) -> None:
        self.priors = _priors()
        self._clear(0)

    def _clear(self, tokens: int) -> None:
        """Make room for a text of `tokens`; pages that are not written cost nothing."""
        rows = max(1024, (tokens + 512) * ORDER)
        self._nodes = np.empty((rows, ngram.COLUMNS), np.int32)
        self._nodes[0] = 0
        self._table = np.zeros(1 << (2 * rows - 1).bit_length(), np.int32)
        self._active = np.zeros(ORDER + 1, np.int32)
        self._size = 1
        self._root = 0
        self._matches = np.zeros(0, np.int32)
        self._out = np.empty((0, 3), np.int32)

    def begin(self, context: Context) -> None:
        self._clear(len(context))
        self._add(context.tokens)

    def observe(self, step: Step) -> None:
        self._add(step.emitted)

    def _add(self, tokens: Int32) -> None:
        needed = self._size + len(tokens) * ORDER
        if needed > len(self._nodes):
            nodes = np.empty((2 * needed, ngram.COLUMNS), np.int32)
            nodes[: self._size] = self._nodes[: self._size]
            self._nodes = nodes
            self._table = np.zeros(1 << (4 * needed - 1).bit_length(), np.int32)
            ngram.rehash(self._nodes, self._table, self._size)
        self._size = ngram.extend(self._nodes, self._table, self._active, self._size, tokens)
        self._root = ngram.longest_suffix(self._nodes, self._active)

    def expand(self, frontier: Frontier) -> Int32:
        if len(self._matches) < len(frontier.pool):
            self._matches = np.zeros(len(frontier.pool), np.int32)
        rows = len(frontier.nodes) * self.rows_per_node
        if len(self._out) < rows:
            self._out = np.empty((2 * rows, 3), np.int32)
        count = ngram.expand(
            self._nodes,
            self._table,
            self._root,
            self._matches,
            frontier.pool,
            frontier.nodes,
            self.rows_per_node,
            self._out,
        )
        return self._out[:count]
