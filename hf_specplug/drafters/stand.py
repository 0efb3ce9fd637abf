"""STAND (Song et al. 2025, arXiv 2506.04708): the target's distributions after the same n-gram.

The target's distributions are averaged by the last four, three and two tokens, and those of the
longest known n-gram are proposed. What one sample of a question teaches serves the next sample.
Written from the paper. Unlike in the paper, memory is bounded, and an observation holds the
target's `TOP_K` likeliest tokens, of which a row keeps up to the paper's ten.

The tree is grown as for all drafters: see `hf_specplug.published.stand` for the paper's tree and
its stochastic drafts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Context, Drafter, Float32, Frontier, Int32, Step
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.drafters.successor_table import SuccessorTable
from hf_specplug.errors import OptionError
from hf_specplug.kernels import stand as kernels
from hf_specplug.kernels.successors import WAYS

SUCCESSORS = 10
"""Successors kept per n-gram, as in the paper."""


@register
class StandDrafter(Drafter):
    """Proposes the target's likeliest next tokens after the same four, three or two tokens.

    Evidence: the length of the n-gram, how often it was learned, and the mean probability.

    Args:
        rows: n-grams kept at most, a power of two, 8 at least. Each takes 96 bytes: 2^18 take up
            to 24 MiB; the table grows as it fills. A new n-gram in a full set of eight replaces the
            one that was learned longest ago.

    Raises:
        OptionError: `rows` is no such number.

    Example:
        if `the cat` was followed by (sat 0.5, ran 0.3) and later by (sat 0.7, is 0.2), then sat
        (0.6), ran (0.15) and is (0.1) are proposed after every `the cat`.
    """

    name: ClassVar[str] = "stand"
    needs: ClassVar[frozenset[str]] = frozenset({"topk"})
    patient: ClassVar[bool] = True

    def __init__(self, rows: int = 1 << 18) -> None:
        if rows < WAYS or rows & (rows - 1):
            raise OptionError(f"rows must be a power of two, {WAYS} at least, not {rows}")
        self.priors = np.array(learned(self.name), np.float32)
        self.table = SuccessorTable(rows, SUCCESSORS, most=1.0)
        self._context = Context([], 0)
        self._grams = np.empty(kernels.LONGEST_GRAM, np.uint64)
        self._out = np.empty((0, 3), np.int32)

    def begin(self, context: Context) -> None:
        """Start a new request; the table is kept unless the vocabulary size changes."""
        if self.table.vocab_size != context.vocab_size:
            self.table = self.table.emptied(context.vocab_size)
        self._context = context

    def for_another_call(self) -> StandDrafter:
        """A drafter that shares the table, until one of the two gets another vocabulary."""
        twin = self._sharing()
        twin._context = Context([], 0)
        twin._grams = np.empty(kernels.LONGEST_GRAM, np.uint64)
        twin._out = np.empty((0, 3), np.int32)
        return twin

    def observe(self, step: Step) -> None:
        """Learn from the target's outputs at every token of the tree.

        Rejected nodes teach as well: another sample of the same question may contain them.
        """
        if step.topk is None:
            return
        table = self.table
        table.make_room(kernels.GRAM_LENGTHS * len(step.tokens))
        table.clock = kernels.learn(
            *table.arrays,
            table.clock,
            self._context.tokens[: step.before],
            step.tokens,
            step.parents,
            step.topk.ids,
            step.topk.probs,
        )

    @property
    def grams(self) -> tuple[NDArray[Any], ...]:
        """For `kernels.tables`: the table, the text, and scratch."""
        table, text = self.table, self._context.tokens
        return table.keys, table.visits, table.ids, table.weights, text, self._grams

    def expand(self, frontier: Frontier) -> Int32:
        rows = len(frontier.nodes) * SUCCESSORS
        if len(self._out) < rows:
            self._out = np.empty((2 * rows, 3), np.int32)
        table = self.table
        count = kernels.expand(
            table.keys,
            table.visits,
            table.ids,
            table.weights,
            frontier.pool,
            frontier.nodes,
            self._context.tokens,
            self._grams,
            self._out,
        )
        return self._out[:count]

    def distribution(self, pool: Int32, node: int) -> tuple[Int32, Float32]:
        """The mean distribution after a search node's longest known n-gram.

        Args:
            pool: int32[capacity, 2 or more], token and parent of each node, as in `Frontier`.
            node: its id.

        Returns:
            (int32[n] tokens, float32[n] probabilities, descending), n <= 10.
        """
        table = self.table
        row, _ = kernels.lookup(table.keys, pool, node, self._context.tokens, self._grams)
        probs = table.weights[row]
        known = 0 if row < 0 else int(np.count_nonzero(probs))
        return table.ids[row, :known], probs[:known]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The table's arrays: see `SuccessorTable.state_dict`."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        self.table.load_state_dict(state)
