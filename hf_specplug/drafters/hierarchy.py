"""Hierarchy Drafting (Cho et al. 2025, arXiv 2502.05609): drafters in a fixed order.

The paper orders its databases by temporal locality: this text, the model's answers, a corpus.

- Its first is a table of up to seven 4-token chains per last token, in the order of last use. Here
  it is the drafter "context", which matches as many tokens as possible and proposes the latest
  continuation first.
- Its second is a table of the same form with the 100,000 most common 5-grams of the model's
  answers. Here these are stores of kind "ngram", which the drafter "phrases" reads.
- Its third is REST's suffix array, the drafter "rest".

The paper drafts chains; here every node of a tree is expanded.
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
from hf_specplug.kernels.tree import BAD_BUCKET, BAD_NODE

ORDER = ("context", "phrases", "rest")

LIMIT = 7
"""Proposals per node; a node with fewer takes the next level's as well, as in the paper's code."""

_REFUSALS = {
    BAD_NODE: "proposed for a node that it was not asked about",
    BAD_BUCKET: "proposed with an evidence bucket that it has no prior for",
}


@register
class HierarchyDrafter(Drafter):
    """Takes the proposals of the first level, and of later levels only what is missing to `LIMIT`.

    `drafters=["hierarchy"]` is the paper's order, for comparison. The accept length is higher with
    `drafters=["context", "phrases", "rest"]`: then all proposals of the same drafters are used,
    with calibrated probabilities.

    Evidence: that of the level that proposes.

    Args:
        levels: drafters by name or as objects, in the order of precedence.

    Attributes:
        levels: those drafters. A store that is added goes to the first level that reads its kind.

    Raises:
        OptionError: a name is unknown or repeated.

    Example:
        >>> HierarchyDrafter(["context", "recycling"]).needs
        frozenset({'topk'})
    """

    name: ClassVar[str] = "hierarchy"

    def __init__(self, levels: Iterable[str | Drafter] = ORDER) -> None:
        self.levels = create(levels)
        self.needs = frozenset().union(  # type: ignore[misc]  # a ClassVar of other drafters
            *(level.needs for level in self.levels)
        ) - {"noise"}  # other levels propose without it
        self.kinds = frozenset().union(  # type: ignore[misc]
            *(level.kinds for level in self.levels)
        )
        self.priors = np.concatenate([level.priors for level in self.levels])
        self._place = np.zeros(0, np.int32)
        self._allocate(32)

    def _allocate(self, nodes: int) -> None:
        self._taken = np.zeros(nodes, np.int32)
        self._tokens = np.empty((nodes, LIMIT), np.int32)
        self._out = np.empty((nodes * LIMIT, 3), np.int32)

    def add(self, store: Any) -> None:
        """Let the first level that reads its kind read this store as well.

        Raises:
            OptionError: no level reads stores of this kind.
        """
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
        """Propose next tokens for each frontier node (see `Drafter.expand`).

        Every level expands every node, because it may keep state by node.

        Raises:
            DraftError: a level breaks its contract.
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
                self._tokens,
                size,
                self._out,
            )
            if size < 0:
                raise DraftError(f"level {level.name!r} {_REFUSALS[size]}")
            first = end
        return self._out[:size]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The arrays of all levels, as `LEVEL.ARRAY`."""
        return {
            f"{level.name}.{key}": array
            for level in self.levels
            for key, array in level.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            StateError: the arrays do not fit. The levels before the one that refused keep theirs.
        """
        parts: dict[str, dict[str, NDArray[Any]]] = {level.name: {} for level in self.levels}
        for key, array in state.items():
            name, _, rest = key.partition(".")
            if name not in parts:
                raise StateError(f"{self.name!r} has no level {name!r}, only {sorted(parts)}")
            parts[name][rest] = array
        for level in self.levels:
            level.load_state_dict(parts[level.name])
