"""DReSD (Gritta et al. 2025, arXiv 2502.15572) as published: rows of what followed close states."""

from __future__ import annotations

from typing import ClassVar

from hf_specplug.drafters.dense import DenseDrafter
from hf_specplug.published.paper import OneDrafterSearch, merged
from hf_specplug.tree import DraftTree

NEIGHBOURS = 50
"""Stored states that are retrieved."""

DRAFTS, LENGTH = 10, 10
"""Rows of a draft, and tokens of a row."""


class Dresd(OneDrafterSearch):
    """Drafts what followed the ten closest states that the last token followed, too.

    The 50 states closest to that of the last verified token are retrieved. Those that were not
    followed by the token just picked are dropped: this is the paper's next-token filter. Of the
    others the first ten are kept, and the next ten tokens of each are a row of the draft. The paper
    verifies the rows as a batch. Here they are merged into one tree, which gives the same tokens.
    """

    uses: ClassVar[tuple[str, ...]] = ("dense",)

    def _tree(
        self, drafter: DenseDrafter, source: int, root: int, limit: int, depth: int
    ) -> DraftTree:
        return merged([(row, source) for row in drafts(drafter, root)], limit, depth)


def drafts(drafter: DenseDrafter, root: int) -> list[list[int]]:
    """The rows of a draft after the token `root`, the closest state's first."""
    found = drafter.nearest(NEIGHBOURS, 1 + LENGTH)
    return [row[1:].tolist() for row in found if len(row) and row[0] == root][:DRAFTS]
