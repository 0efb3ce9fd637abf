"""Low-order and sparse contexts: what followed some of the last three tokens.

Text compressors ask them beside the n-grams of all lengths (Mahoney 2005, PAQ): after `the big cat`
they know what followed `cat`, `big cat`, `big ...`, `the ... cat` and `the big ...`. Each says
little, and the same token named by several says more.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import (
    TOP_K,
    Context,
    Drafter,
    Float32,
    Frontier,
    Int32,
    Step,
)
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.drafters.successor_table import SuccessorTable
from hf_specplug.kernels import sparse as kernels

DECAY = 0.9
"""The counts of a context's successors are multiplied by this whenever it occurs again."""

PROMPT = 16384
"""The last so many tokens of a prompt are learned."""

_NOTHING_LIKELY = (
    np.empty((0, TOP_K), np.int32),
    np.empty((0, TOP_K), np.float32),
    np.empty(0, np.int32),
)
for _array in _NOTHING_LIKELY:
    _array.flags.writeable = False  # as in a Step: of other arrays kernels are compiled again

ROWS = 1 << 18
"""Contexts that are kept, of 80 bytes each: up to 20 MiB."""


@register
class SparseDrafter(Drafter):
    """Proposes what followed five contexts of the last three tokens, all of them pooled.

    What prompts and outputs teach is kept across requests.

    Evidence: the depth of the node, and the log-odds that the contexts give together.

    Example:
        `a red car , a blue` is followed by `car`, since `car` was two places after the last `a`.
    """

    name: ClassVar[str] = "sparse"
    rounds: ClassVar[int | None] = 2
    patient: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"topk"})

    def __init__(self) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self.table = SuccessorTable(ROWS, kernels.SUCCESSORS, most=2 / (1 - DECAY))
        self._context = Context([], 0)
        self._out = np.empty((0, 3), np.int32)

    def begin(self, context: Context) -> None:
        """Start a new request; the table is kept unless the vocabulary size changes."""
        if self.table.vocab_size != context.vocab_size:
            self.table = self.table.emptied(context.vocab_size)
        self._context = context
        self._learn(min(PROMPT, len(context)), *_NOTHING_LIKELY)

    def for_another_call(self) -> SparseDrafter:
        """A drafter that shares the table, until one of the two gets another vocabulary."""
        twin = self._sharing()
        twin._context = Context([], 0)
        twin._out = np.empty((0, 3), np.int32)
        return twin

    def observe(self, step: Step) -> None:
        """Learn the emitted tokens, and what else the target found likely in their places."""
        if step.topk is None:
            self._learn(len(step.emitted), *_NOTHING_LIKELY)
            return
        rows = step.visited
        if not len(rows):  # of a prompt, the last row is that of the first emitted token
            rows = np.array([len(step.topk.ids) - 1], np.int32)
            rows.flags.writeable = False
        self._learn(len(step.emitted), step.topk.ids, step.topk.probs, rows)

    def _learn(self, count: int, top_ids: Int32, top_probs: Float32, rows: Int32) -> None:
        """Learn the last `count` tokens of the text; see `kernels.learn` for the others."""
        table, text = self.table, self._context.tokens
        table.make_room(len(kernels.CONTEXTS) * count)
        begin = len(text) - count
        table.clock = kernels.learn(
            *table.arrays, table.clock, text, begin, top_ids, top_probs, rows, DECAY
        )

    @property
    def contexts(self) -> tuple[NDArray[Any], ...]:
        """For `kernels.tables`: the table and the text."""
        return self.table.keys, self.table.ids, self.table.weights, self._context.tokens

    def expand(self, frontier: Frontier) -> Int32:
        rows = len(frontier.nodes) * kernels.MOST_ROWS
        if len(self._out) < rows:
            self._out = np.empty((2 * rows, 3), np.int32)
        table = self.table
        count = kernels.expand(
            table.keys,
            table.ids,
            table.weights,
            frontier.pool,
            frontier.nodes,
            self._context.tokens,
            self._out,
        )
        return self._out[:count]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The table's arrays: see `SuccessorTable.state_dict`."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        self.table.load_state_dict(state)
