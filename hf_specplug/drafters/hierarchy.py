"""Hierarchy Drafting (Cho et al. 2025, arXiv 2502.05609): drafters asked in a fixed order.

The paper's order is that of temporal locality: what this text said, then what the model is known to
say, then the statistics of a corpus. Its first level is a table of up to seven 4-token chains for
each last token, in the order of last use; here it is the drafter "context", which matches as many
tokens as it can and names the latest continuation first. Its second is a table of the same form
with the 100,000 most common 5-grams of the model's answers, here the stores of kind "ngram" that
"phrases" reads; its third is REST's suffix array. Its drafts are chains, here every node of a tree
is asked for its next tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Step
from hf_specplug.drafters.registry import create, register
from hf_specplug.errors import DraftError, OptionError, StateError
from hf_specplug.kernels import hierarchy as kernels

ORDER = ("context", "phrases", "rest")

LIMIT = 7
"""Tokens that are named per node; with fewer the next level is asked, as in the paper's code."""

_REFUSALS = {
    kernels.BAD_NODE: "named a node that it was not asked about",
    kernels.BAD_BUCKET: "named an evidence bucket that it has no prior for",
}


@register
class HierarchyDrafter(Drafter):
    """Takes what the first level names, and of a next level only what is missing to `LIMIT`.

    `drafters=["hierarchy"]` is the paper's order. It is not what drafts best: given by name,
    `drafters=["context", "phrases", "rest"]`, the same drafters are all asked, and weighed by
    calibrated probabilities.

    Args:
        levels: drafters by name or as objects, the first one to be asked first.

    Attributes:
        levels: those drafters. Each store that is added goes to the first that reads its kind.

    Raises:
        OptionError: an unknown or repeated name.

    Example:
        >>> HierarchyDrafter(["context", "recycling"]).needs
        frozenset({'topk'})
    """

    name: ClassVar[str] = "hierarchy"

    def __init__(self, levels: Iterable[str | Drafter] = ORDER) -> None:
        self.levels = create(levels)
        self.needs = frozenset().union(  # type: ignore[misc]  # an attribute of the class elsewhere
            *(level.needs for level in self.levels)
        )
        self.kinds = frozenset().union(  # type: ignore[misc]
            *(level.kinds for level in self.levels)
        )
        self.priors = np.concatenate([level.priors for level in self.levels])
        self._place = np.zeros(0, np.int32)
        self._allocate(32)

    def _allocate(self, nodes: int) -> None:
        self._taken = np.zeros(nodes, np.int32)
        self._named = np.empty((nodes, LIMIT), np.int32)
        self._out = np.empty((nodes * LIMIT, 3), np.int32)

    def add(self, store: Any) -> None:
        """Raises OptionError if no level reads its kind."""
        kind = store.manifest.kind
        for level in self.levels:
            if kind in level.kinds:
                level.add(store)
                return
        raise OptionError(f"no level of {self.name!r} reads datastores of kind {kind!r}")

    def begin(self, context: Context) -> None:
        for level in self.levels:
            level.begin(context)

    def for_another_call(self) -> HierarchyDrafter:
        twin = self._sharing()
        twin.levels = [level.for_another_call() for level in self.levels]
        twin._place = np.zeros(0, np.int32)
        twin._allocate(32)
        return twin

    def observe(self, step: Step) -> None:
        for level in self.levels:
            level.observe(step)

    def expand(self, frontier: Frontier) -> Int32:
        """Every level sees every node, as it may keep state by node; too many rows are left out.

        Raises:
            DraftError: a level broke its contract.
        """
        if len(self._place) < len(frontier.pool):
            self._place = np.zeros(len(frontier.pool), np.int32)
        if len(self._taken) < len(frontier.nodes):
            self._allocate(2 * len(frontier.nodes))
        kernels.begin(frontier.nodes, self._place, self._taken)
        size = first = 0
        for level in self.levels:
            end = first + len(level.priors)
            size = kernels.take(
                level.expand(frontier),
                first,
                end,
                frontier.nodes,
                self._place,
                self._taken,
                self._named,
                size,
                self._out,
            )
            if size < 0:
                raise DraftError(f"level {level.name!r} {_REFUSALS[size]}")
            first = end
        return self._out[:size]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What the levels have learned, as `LEVEL.ARRAY`."""
        return {
            f"{level.name}.{key}": array
            for level in self.levels
            for key, array in level.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Raises StateError if it does not fit; levels before the one that refused have theirs."""
        parts: dict[str, dict[str, NDArray[Any]]] = {level.name: {} for level in self.levels}
        for key, array in state.items():
            name, _, rest = key.partition(".")
            if name not in parts:
                raise StateError(f"{self.name!r} has no level {name!r}, only {sorted(parts)}")
            parts[name][rest] = array
        for level in self.levels:
            level.load_state_dict(parts[level.name])
