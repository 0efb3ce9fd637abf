"""The drafter scheduler: a drafter that takes more time than it saves is asked less often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_specplug.tree import DraftTree


class DrafterScheduler:
    """Chooses which drafters to ask in each step, by the seconds that each saves and takes.

    Args:
        count: number of drafters.
    """

    _MEMORY = 0.9  # decay of the averages, per time asked
    _RAREST = 16  # maximum number of steps from one time asked to the next
    _FREE = 0.002  # of a forward pass: cheaper drafters are always asked, so that they learn

    def __init__(self, count: int) -> None:
        self.all = [True] * count
        self._saved = [0.0] * count
        self._spent = [0.0] * count
        self._started = [False] * count
        self._every = [1] * count
        self._step = 0

    def next(self) -> list[bool]:
        """Whether to ask each drafter in this step, one bool per drafter."""
        self._step += 1
        return [self._step % every == 0 for every in self._every]

    def observe(
        self,
        asked: Sequence[bool],
        spent: Sequence[float],
        tree: DraftTree,
        saved: float,
        step: float,
    ) -> None:
        """Credit what a tree saves to the drafters that proposed its nodes, by probability.

        Args:
            asked: which drafters were asked for the tree.
            spent: seconds that each drafter took.
            tree: the verified tree.
            saved: seconds that the tree is expected to save.
            step: seconds that its forward pass took.
        """
        shares = _shares(tree, len(asked)) if saved else [0.0] * len(asked)
        for d, was_asked in enumerate(asked):
            if not was_asked:
                continue
            if not self._started[d]:  # the first time includes loading kernels
                self._started[d] = True
                continue
            earned = shares[d] * saved
            self._saved[d] += (1 - self._MEMORY) * (earned - self._saved[d])
            self._spent[d] += (1 - self._MEMORY) * (spent[d] - self._spent[d])
            earns = max(self._saved[d], earned) > self._spent[d]
            if earns or self._spent[d] < self._FREE * step:
                self._every[d] = 1
            else:
                self._every[d] = min(2 * self._every[d], self._RAREST)


def _shares(tree: DraftTree, drafters: int) -> list[float]:
    """The share of each drafter in a tree, by path probability of the nodes that it proposed.

    Drafters that proposed the same node share its path probability equally. The shares sum to 1.
    """
    paths = tree.path_probs()
    proposed = (tree.sources[:, None] >> np.arange(drafters, dtype=np.uint16)) & 1
    credit = (paths / proposed.sum(axis=1)) @ proposed
    return (credit / paths.sum()).tolist()  # type: ignore[no-any-return]
