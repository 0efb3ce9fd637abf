"""The drafters of one call: they propose and learn together, and are dropped one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_specplug.drafters.contract import MAX_CHILDREN, Context, Drafter, Float32, Int32, Step
from hf_specplug.errors import DraftError
from hf_specplug.kernels import tree as kernels

_REFUSALS = {
    kernels.BAD_NODE: "named a node that it was not asked about",
    kernels.BAD_TOKEN: "named a token outside the vocabulary",
    kernels.BAD_BUCKET: "named an evidence bucket that it has no prior for",
}
"""Why the proposals of a drafter are refused, by the error code of `kernels.tree.insert`."""


def refusal(drafter: Drafter, code: int) -> DraftError:
    """The error of a drafter whose proposals `kernels.tree.insert` refused with this code."""
    return DraftError(f"drafter {drafter.name!r} {_REFUSALS[code]}")


@dataclass(frozen=True, slots=True)
class Expert:
    """A drafter, its column of `evidence`, and its rows [begin, end) in the table of buckets."""

    drafter: Drafter
    column: int
    begin: int
    end: int


class Experts:
    """The drafters of one call. A drafter that fails is dropped, and never stops generation.

    Args:
        drafters: the drafters, in the order of their bits in `DraftTree.sources`.
        on_error: called once with a drafter that broke its contract, and the exception.

    Attributes:
        names: the names of all drafters, dropped or not; names[d] is that of bit d of
            `DraftTree.sources`.
        seconds: seconds that each drafter took for the last tree.
    """

    def __init__(
        self, drafters: Sequence[Drafter], on_error: Callable[[Drafter, Exception], None]
    ) -> None:
        self.names = [drafter.name for drafter in drafters]
        self.seconds = [0.0] * len(drafters)
        self._suppressed = np.zeros(0, np.int32)
        self._context = Context([], 0)
        self._missed = 0  # tokens of the text that drafters have not been shown
        self._on_error = on_error
        self._active: list[Expert] = []
        self._asked: list[Expert] = []
        tables = [np.zeros((1, 3), np.float32)]  # bucket 0: not proposed
        end = 1
        for column, drafter in enumerate(drafters):
            try:
                table = _table(drafter)
            except Exception as error:
                on_error(drafter, error)
                continue
            tables.append(table)
            self._active.append(Expert(drafter, column, end, end + len(table)))
            end += len(table)
        self._table = np.concatenate(tables)
        self._needed = self._all_needs()

    @property
    def drafters(self) -> list[Drafter]:
        """The drafters that have not been dropped."""
        return [expert.drafter for expert in self._active]

    def begin(self, context: Context) -> None:
        """Begin a request with every drafter; a drafter that fails is dropped.

        Args:
            context: the prompt; its `suppressed` tokens are never drafted, whichever drafter
                proposes them.
        """
        self._suppressed = np.array(context.suppressed, np.int32)
        self._context = context
        self._missed = 0
        for drafter in self.drafters:
            try:
                drafter.begin(context)
            except Exception as error:
                self.drop(drafter, error)

    def observe(self, step: Step, patient: bool | None = None) -> None:
        """Let drafters learn from a step; a drafter that fails is dropped.

        Args:
            patient: only those that are, or are not, `Drafter.patient`; None: all.
        """
        for drafter in self.drafters:
            if patient is not None and drafter.patient is not patient:
                continue
            try:
                drafter.observe(step)
            except Exception as error:
                self.drop(drafter, error)

    def postpone(self, count: int) -> None:
        """Note that drafters have not been shown the last `count` tokens of the text."""
        self._missed += count

    def catch_up(self) -> None:
        """Show the drafters all tokens that were postponed, without outputs of the target."""
        count, self._missed = self._missed, 0
        if count:
            tokens = self._context.tokens
            before = len(tokens) - count - 1
            path = range(count)
            self.observe(Step.of_text(tokens[before:-1], before, path, tokens[-count:], None))

    def needs(self, output: str) -> bool:
        """Whether a drafter needs this output of the target ("topk" or "hidden")."""
        return output in self._needed

    def _all_needs(self) -> frozenset[str]:
        return frozenset().union(*(expert.drafter.needs for expert in self._active))

    def drop(self, drafter: Drafter, error: Exception) -> None:
        """Drop a drafter: it is not asked again in this call."""
        self._active = [expert for expert in self._active if expert.drafter is not drafter]
        self._asked = [expert for expert in self._asked if expert.drafter is not drafter]
        self._needed = self._all_needs()
        self._on_error(drafter, error)


def _table(drafter: Drafter) -> Float32:
    """float32[buckets, 3]: prior, log-odds of the prior, index of the mixer's weight set."""
    priors = np.asarray(drafter.priors)
    if priors.dtype != np.float32 or priors.ndim != 1 or not len(priors):
        raise DraftError(
            f"priors of drafter {drafter.name!r} must be float32[buckets], "
            f"not {priors.dtype}{list(priors.shape)}"
        )
    if not ((priors > 0) & (priors <= 1)).all():
        raise DraftError(f"priors of drafter {drafter.name!r} must lie in (0, 1]")
    likely = priors.clip(1e-4, 1 - 1e-4)
    sets = np.searchsorted(_SETS, priors, side="right")
    return np.stack([priors, np.log(likely / (1 - likely)), sets], axis=1).astype(np.float32)


_SETS = (0.1, 0.35, 0.7)
"""Upper bounds of a node's best prior for the mixer's weight sets; the last set has no bound."""


def checked_rows(rows: Int32, nodes: int) -> Int32:
    """Check the rows that a drafter returned for `nodes` frontier nodes.

    Raises:
        DraftError: the type, dtype, shape or number of rows breaks the contract of `expand`.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != np.int32 or rows.ndim != 2:
        given = f"{rows.dtype}{list(rows.shape)}" if isinstance(rows, np.ndarray) else type(rows)
        raise DraftError(f"expand must return int32[rows, 3], not {given}")
    if rows.shape[1] != 3 or len(rows) > nodes * MAX_CHILDREN:
        raise DraftError(
            f"expand must return at most {MAX_CHILDREN} rows of 3 per node, "
            f"not {list(rows.shape)} for {nodes} nodes"
        )
    return np.ascontiguousarray(rows)
