"""STAND (Song et al. 2025, arXiv 2506.04708): what the target said after the same n-gram.

The target's distributions are averaged by the last four, three and two tokens, and the longest
n-gram that is known proposes. What one sample of a question taught serves the next. Written from
the paper. Other than there, prompts are learned too, memory is bounded, and the target shows its
`TOP_K` likeliest tokens per observation, of which a row still gathers the paper's ten.

The tree is not the paper's: see `hf_specplug.published.stand` for that, and for its stochastic
drafts.
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
from hf_specplug.kernels import successors

WIDTH = 10
"""Successors kept per n-gram, as in the paper."""


@register
class StandDrafter(Drafter):
    """Proposes what the target found likely after the same four, three or two tokens.

    Args:
        rows: n-grams kept, a power of two from 8. Each takes 96 bytes, so 2^18 take 24 MiB at
            most (pages that were never written cost nothing). When a set of eight is full, the
            n-gram that was learned longest ago goes.

    Raises:
        OptionError: another number of rows.

    Example:
        after `the cat` was followed by (sat .5, ran .3) and later by (sat .7, is .2), every later
        `the cat`, in the text or in a draft, gets the children sat (.6), ran (.15) and is (.1).
    """

    name: ClassVar[str] = "stand"
    needs: ClassVar[frozenset[str]] = frozenset({"topk"})

    def __init__(self, rows: int = 1 << 18) -> None:
        if rows < successors.WAYS or rows & (rows - 1):
            raise OptionError(f"rows must be a power of two from {successors.WAYS}, not {rows}")
        self.priors = np.array(learned(self.name), np.float32)
        self.table = SuccessorTable(rows, WIDTH, most=1.0)
        self._context = Context([], 0)
        self._grams = np.empty(successors.LONGEST, np.uint64)
        self._out = np.empty((0, 3), np.int32)

    def begin(self, context: Context) -> None:
        """Keeps what earlier requests taught, unless the vocabulary is another one."""
        if self.table.vocab_size != context.vocab_size:
            self.table = self.table.emptied(context.vocab_size)
        self._context = context

    def for_another_call(self) -> StandDrafter:
        """It shares the table, for as long as both draft for the same vocabulary."""
        twin = self._sharing()
        twin._context = Context([], 0)
        twin._grams = np.empty(successors.LONGEST, np.uint64)
        twin._out = np.empty((0, 3), np.int32)
        return twin

    def observe(self, step: Step) -> None:
        """Learns from all of the target's rows: of the prompt and of every drafted node.

        What was rejected teaches, too: another sample of the same question may well say it.
        """
        if step.topk is None:
            return
        table = self.table
        table.make_room(successors.ORDERS * len(step.tokens))
        table.clock = successors.learn(
            table.keys,
            table.stamps,
            table.visits,
            table.ids,
            table.weights,
            table.clock,
            self._context.tokens[: step.before],
            step.tokens,
            step.parents,
            step.topk.ids,
            step.topk.probs,
        )

    def expand(self, frontier: Frontier) -> Int32:
        rows = len(frontier.nodes) * WIDTH
        if len(self._out) < rows:
            self._out = np.empty((2 * rows, 3), np.int32)
        count = successors.expand(
            self.table.keys,
            self.table.visits,
            self.table.ids,
            self.table.weights,
            frontier.pool,
            frontier.nodes,
            self._context.tokens,
            self._grams,
            self._out,
        )
        return self._out[:count]

    def distribution(self, pool: Int32, node: int) -> tuple[Int32, Float32]:
        """What is known of the next token after a search node: (int32[n], float32[n]), n <= 10.

        Args:
            pool: int32[capacity, 2 or more], token and parent of each node, as in `Frontier`.
        """
        table = self.table
        row, _ = successors.lookup(table.keys, pool, node, self._context.tokens, self._grams)
        probs = table.weights[row]
        known = 0 if row < 0 else int(np.count_nonzero(probs))
        return table.ids[row, :known], probs[:known]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The n-grams, oldest first: see `SuccessorTable.state_dict`."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        self.table.load_state_dict(state)
