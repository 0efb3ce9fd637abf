"""Which drafters to ask in a step: each as often as the time that it saves is worth its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_specplug.tree import DraftTree


class DrafterScheduler:
    """Asks each drafter as often as it pays: the seconds that it saves against those it takes.

    Args:
        count: number of drafters.
    """

    _MEMORY = 0.9  # per time asked
    _RAREST = 16  # steps between two times, while a drafter earns nothing
    _FREE = 0.002  # of a forward pass: cheaper drafters are always asked, so that they learn

    def __init__(self, count: int) -> None:
        self.all = [True] * count
        self._saved = [0.0] * count
        self._spent = [0.0] * count
        self._started = [False] * count
        self._every = [1] * count
        self._step = 0

    def next(self) -> list[bool]:
        """bool for each drafter: whether to ask it in this step."""
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
            spent: seconds that each of them took.
            saved: seconds that the tree is expected to save.
            step: seconds that its forward pass took.
        """
        shares = _shares(tree, len(asked)) if saved else [0.0] * len(asked)
        for d, was_asked in enumerate(asked):
            if not was_asked:
                continue
            if not self._started[d]:  # its first time includes loading kernels
                self._started[d] = True
                continue
            earned = shares[d] * saved
            self._saved[d] += (1 - self._MEMORY) * (earned - self._saved[d])
            self._spent[d] += (1 - self._MEMORY) * (spent[d] - self._spent[d])
            pays = max(self._saved[d], earned) > self._spent[d]
            if pays or self._spent[d] < self._FREE * step:
                self._every[d] = 1
            else:
                self._every[d] = min(2 * self._every[d], self._RAREST)


def _shares(tree: DraftTree, drafters: int) -> list[float]:
    """Each drafter's part in a tree: path probability of its nodes; with others, it shares them."""
    paths = tree.path_probs()
    named = (tree.sources[:, None] >> np.arange(drafters, dtype=np.uint16)) & 1
    credit = (paths / named.sum(axis=1)) @ named
    return (credit / paths.sum()).tolist()  # type: ignore[no-any-return]
