"""Token Recycling (Luo et al. 2024, arXiv 2408.08696) as published: its matrix in a static tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from hf_specplug.drafters.contract import Int32
from hf_specplug.drafters.recycling import SUCCESSORS, RecyclingDrafter
from hf_specplug.kernels.tree import TOKEN
from hf_specplug.published.static_tree import Shape, StaticSearch, static_tree

LEVELS = (8, 21, 25, 15, 8, 3)
"""Nodes at each depth of the paper's static tree, 80 in total (section 3.2)."""


class TokenRecycling(StaticSearch):
    """Fills the paper's static tree of 80 nodes from the matrix, regardless of `limit`."""

    uses: ClassVar[tuple[str, ...]] = ("recycling",)

    @classmethod
    def shape(cls) -> Shape:
        return static_tree(LEVELS, SUCCESSORS)

    def ranked(
        self, drafter: RecyclingDrafter, root: int, pool: Int32, node: int
    ) -> Sequence[tuple[int, float]]:
        row = drafter.ids[int(pool[node, TOKEN]) if node else root].tolist()
        return [(token, 1 / (place + 2)) for place, token in enumerate(row) if token >= 0]
