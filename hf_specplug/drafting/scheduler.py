"""The drafter scheduler: a drafter that takes more time than it saves is asked less often.

The same holds for all drafters together: the search takes time beside its drafters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_specplug.tree import DraftTree

_RAREST = 16  # maximum number of steps from one time asked to the next


class DrafterScheduler:
    """Chooses which drafters to ask in each step, by the seconds that each saves and takes.

    Args:
        count: number of drafters.
        rows: number of rows of the batch: asking for N rows once tells as much as asking for one
            row N times.
    """

    def __init__(self, count: int, rows: int = 1) -> None:
        self.all = [True] * count
        self._none = [False] * count
        self._drafters = [_Account(0.002, 0.9**rows, 0.0) for _ in range(count)]
        self._search = _Account(0.003, 0.97**rows, 3.0)
        self._step = 0

    def next(self) -> list[bool]:
        """Whether to ask each drafter in this step, one bool per drafter."""
        self._step += 1
        if self._step % self._search.every:
            return self._none
        return [self._step % drafter.every == 0 for drafter in self._drafters]

    def observe(
        self,
        asked: Sequence[bool],
        spent: Sequence[float],
        searching: float,
        tree: DraftTree,
        saved: float,
        step: float,
    ) -> None:
        """Credit what a tree saves to the drafters that proposed its nodes, by probability.

        Args:
            asked: which drafters were asked for the tree.
            spent: seconds that each drafter took.
            searching: seconds that the search took, drafters included.
            tree: the verified tree.
            saved: seconds that the tree is expected to save.
            step: seconds that its forward pass took.
        """
        shares = _shares(tree, len(asked)) if saved else [0.0] * len(asked)
        for drafter, was_asked, seconds, share in zip(
            self._drafters, asked, spent, shares, strict=True
        ):
            if was_asked:
                drafter.enter(share * saved, seconds, step)
        self._search.enter(saved, searching - sum(spent), step)


class _Account:
    """What a drafter, or the search, has saved and spent, and how often it is asked.

    Args:
        free: share of the time that it may take even if it saves nothing, so that it is noticed
            when it saves time again.
        memory: decay of the averages, per time asked.
        credit: what it is first thought to save, in times of what it takes.
    """

    _BURST = 4.0  # times the average spent: longer times are those of other programs

    def __init__(self, free: float, memory: float, credit: float) -> None:
        self.every = 1  # asked in each step whose number is divisible by this power of two
        self._free = free
        self._memory = memory
        self._credit = credit
        self._saved = self._spent = 0.0
        self._times = 0

    def enter(self, saved: float, spent: float, step: float) -> None:
        """Enter what was saved and spent, in seconds, in a step that took `step` seconds."""
        self._times += 1
        if self._times == 1:  # the first time includes loading kernels
            return
        if self._times == 2:
            self._saved, self._spent = self._credit * spent, spent
        self._saved += (1 - self._memory) * (saved - self._saved)
        spent = min(spent, self._BURST * self._spent)
        self._spent += (1 - self._memory) * (spent - self._spent)
        due = self._spent / (self._free * step)  # steps per time asked, to keep within the share
        if max(self._saved, saved) > self._spent or due <= 1:
            self.every = 1
        elif due > self.every:
            self.every = min(2 * self.every, _RAREST)
        elif due <= self.every // 2:
            self.every //= 2


def _shares(tree: DraftTree, drafters: int) -> list[float]:
    """The share of each drafter in a tree, by path probability of the nodes that it proposed.

    Drafters that proposed the same node share its path probability equally. The shares sum to 1.
    """
    paths = tree.path_probs()
    proposed = (tree.sources[:, None] >> np.arange(drafters, dtype=np.uint16)) & 1
    credit = (paths / proposed.sum(axis=1)) @ proposed
    return (credit / paths.sum()).tolist()  # type: ignore[no-any-return]
