"""A drafter that knows the reference output, so that tests choose where drafts are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Step

Wrong = Callable[[int], bool]


class Replay(Drafter):
    """Proposes the next token of a reference, at rank `rank` among wrong tokens.

    Args:
        reference: the new tokens of plain `generate`.
        wrong: maps a position in `reference` to whether the true token is left out there.
        rank: number of wrong siblings that are likelier than the true token.
        siblings: number of wrong siblings that are less likely than it.
        vocab: wrong tokens are taken from [0, vocab).
    """

    name: ClassVar[str] = "replay"

    def __init__(
        self,
        reference: list[int],
        wrong: Wrong = lambda position: False,
        rank: int = 0,
        siblings: int = 1,
        vocab: int = 96,
    ) -> None:
        self.reference, self.wrong = reference, wrong
        self.rank, self.siblings, self.vocab = rank, siblings, vocab
        self.priors = np.array([0.5, 0.3, 0.1], np.float32)

    def begin(self, context: Context) -> None:
        self.context = context
        self.start = len(context)

    def expand(self, frontier: Frontier) -> Int32:
        rows: list[tuple[int, int, int]] = []
        for node in frontier.nodes.tolist():
            path = frontier.path(node)
            position = len(self.context) - self.start + len(path)
            if position >= len(self.reference):
                continue
            true = self.reference[position]
            for i in range(1, self.rank + self.siblings + 1):
                rows.append((node, (true + i) % self.vocab, 0 if i <= self.rank else 2))
            on_path = path == self.reference[position - len(path) : position]
            if on_path and not self.wrong(position):
                rows.append((node, true, 1))
        return np.array(rows, np.int32).reshape(-1, 3)

    def observe(self, step: Step) -> None:
        pass
