"""STAND (Song et al. 2025, arXiv 2506.04708) as published: stochastic drafts in a tuned tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Float32, Int32
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.stand import StandDrafter
from hf_specplug.published.static_tree import Shape, StaticSearch
from hf_specplug.tree import DraftTree

_BLOCK = 4096  # Gumbel numbers that are drawn at a time


class GumbelNoise:
    """Gumbel noise, drawn ahead in blocks. Every number is used once.

    A block that were used again would make later drafts depend on earlier rejections, and the
    accepted text would no longer have the target's distribution.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self._block = np.empty(0)

    def take(self, count: int) -> NDArray[np.float64]:
        """float64[count]."""
        if len(self._block) < count:
            self._block = self.generator.gumbel(size=max(_BLOCK, count))
        taken, self._block = self._block[:count], self._block[count:]
        return taken


class Stand(StaticSearch):
    """Fills a tuned tree from the distribution after each node's n-gram.

    With `verification="rejection"`, the children of a node are drawn without replacement, by
    Gumbel-top-k: the k tokens of largest log p + Gumbel noise are a sample of k tokens, in the
    order of their draws. Otherwise, and in greedy calls, they are the likeliest tokens, and no
    noise is drawn. The tree is made by `specplug tune-tree`.
    """

    uses: ClassVar[tuple[str, ...]] = ("stand",)
    stochastic: ClassVar[bool] = True

    def _prepare(self) -> None:
        super()._prepare()
        self._noise: GumbelNoise | None = None

    @classmethod
    def shape(cls) -> Shape:
        parents, rank = np.array(learned("stand_tree"), np.int32).T
        return parents, rank

    def _published(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool,
        generator: np.random.Generator | None,
    ) -> DraftTree:
        if generator is None:
            self._noise = None
        elif self._noise is None or self._noise.generator is not generator:
            self._noise = GumbelNoise(generator)
        return super()._published(root, limit, depth, chain, generator)

    def ranked(
        self, drafter: StandDrafter, root: int, pool: Int32, node: int
    ) -> Sequence[tuple[int, float]]:
        ids, probs = drafter.distribution(pool, node)
        if self._noise is not None:
            noise = self._noise.take(len(probs))
            order = np.argsort(-(np.log(probs) + noise), kind="stable")
            ids, probs = ids[order], probs[order]
        return list(zip(ids.tolist(), probs.clip(max=1.0).tolist(), strict=True))

    def proposal(self, node: int) -> tuple[Int32, Float32, list[int]]:
        """The distribution from which the last tree drew a node's children (see `TreeSearch`)."""
        pairs = self.candidates.get(int(self.filled[node - 1]) + 1 if node else 0, ())
        tokens = np.array([token for token, _ in pairs], np.int32)
        probs = np.array([prob for _, prob in pairs], np.float32)
        return tokens, probs, (np.flatnonzero(self.draft.parents == node - 1) + 1).tolist()
