"""DReSD (Gritta et al. 2025, arXiv 2502.15572) as published: rows of what followed close states."""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np

from hf_specplug.drafters.dense import DenseDrafter
from hf_specplug.published.paper import PaperSearch, merged
from hf_specplug.tree import EMPTY, DraftTree

NEIGHBOURS = 50
"""Stored states that are retrieved."""

DRAFTS, LENGTH = 10, 10
"""Rows of a draft, and tokens of a row."""


class Dresd(PaperSearch):
    """Drafts what followed the ten closest states that the last token followed, too.

    The 50 states closest to that of the last verified token are retrieved. Those that were not
    followed by the token just picked are dropped: this is the paper's next-token filter. Of the
    others the first ten are kept, and the next ten tokens of each are a row of the draft. The paper
    verifies the rows as a batch. Here they are merged into one tree, which gives the same tokens.
    """

    uses: ClassVar[tuple[str, ...]] = ("dense",)

    def _published(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool,
        generator: np.random.Generator | None,
    ) -> DraftTree | None:
        if chain:
            return None
        expert = self._expert("dense")
        if expert is None or limit < 1 or depth < 1:
            return EMPTY
        drafter, column = expert
        start = time.perf_counter()
        source = 1 << column
        rows = [(row, source) for row in drafts(drafter, root)]
        tree = merged(rows, limit, depth)
        self.seconds[column] = time.perf_counter() - start
        return tree.without(self._suppressed) if self._suppressed else tree


def drafts(drafter: DenseDrafter, root: int) -> list[list[int]]:
    """The rows of a draft after the token `root`, the closest state's first."""
    found = drafter.nearest(NEIGHBOURS, 1 + LENGTH)
    return [row[1:].tolist() for row in found if len(row) and row[0] == root][:DRAFTS]
