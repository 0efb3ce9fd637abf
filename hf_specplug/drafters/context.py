"""Suffix matching in the live context: what followed the longest suffix of the text before.

The idea of prompt lookup decoding (Saxena 2023), but with the longest match instead of a fixed
n-gram, with all earlier occurrences instead of the first, and with shorter matches as a back-off
(as in PPM compression).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Step
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.kernels import ngram
from hf_specplug.kernels.trie import rehash

ORDER = 17
"""Tokens of the longest n-gram: a match of 16 tokens and the token after it. Longer ones did not
increase the accept length."""


@register
class ContextDrafter(Drafter):
    """Proposes what followed the longest suffix of each path in prompt and output so far.

    Evidence: the length of the match in tokens, the share of the continuation in all occurrences of
    the match, and whether it is the latest one (see `hf_specplug.kernels.ngram`).

    Example:
        after the text `1 2 3 9 1 2`, the longest suffix of the root that occurred before is `1 2`,
        followed by 3. So 3 is proposed after the root, 9 after that, and so on.
    """

    name: ClassVar[str] = "context"
    rows_per_node: ClassVar[int] = ngram.PROPOSED

    def __init__(self) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._clear(0)

    def _clear(self, tokens: int) -> None:
        """Allocate for a text of `tokens` tokens; pages that are never written take no memory."""
        rows = max(1024, (tokens + 512) * ORDER)
        self._nodes = np.empty((rows, ngram.GRAM_COLUMNS), np.int32)
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

    def for_another_call(self) -> ContextDrafter:
        twin = self._sharing()
        twin._clear(0)
        return twin

    def observe(self, step: Step) -> None:
        self._add(step.emitted)

    def _add(self, tokens: Int32) -> None:
        needed = self._size + len(tokens) * ORDER
        if needed > len(self._nodes):
            nodes = np.empty((2 * needed, ngram.GRAM_COLUMNS), np.int32)
            nodes[: self._size] = self._nodes[: self._size]
            self._nodes = nodes
            self._table = np.zeros(1 << (4 * needed - 1).bit_length(), np.int32)
            rehash(self._nodes, self._table, self._size)
        self._size = ngram.extend(self._nodes, self._table, self._active, self._size, tokens)
        self._root = ngram.longest_suffix(self._nodes, self._active)

    @property
    def suffixes(self) -> tuple[Int32, Int32, int]:
        """For `kernels.tables`: the trie, its hash table, and the match of the root."""
        return self._nodes, self._table, self._root

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
