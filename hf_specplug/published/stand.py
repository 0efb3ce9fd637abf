"""STAND (Song et al. 2025, arXiv 2506.04708) as published: stochastic drafts in a tuned tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import Int32
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.stand import StandDrafter
from hf_specplug.published.static_tree import Shape, StaticSearch


class Stand(StaticSearch):
    """Samples the children of each node from its n-gram's distribution, without replacement.

    Gumbel-top-k: the k tokens of largest log p + Gumbel noise are a sample of k tokens, in the
    order of their draws. The noise comes from a generator of its own, with the same seed in every
    request: drafts are reproducible, and the target's random numbers stay untouched. The tree is
    made by `specplug tune-tree`.
    """

    drafter: ClassVar[str] = "stand"

    def _prepare(self) -> None:
        super()._prepare()
        self._rng = np.random.default_rng(0)

    @classmethod
    def shape(cls) -> Shape:
        parents, rank = np.array(learned("stand_tree"), np.int32).T
        return parents, rank

    def ranked(
        self, drafter: StandDrafter, root: int, pool: Int32, node: int
    ) -> Sequence[tuple[int, float]]:
        ids, probs = drafter.distribution(pool, node)
        order = np.argsort(-(np.log(probs) + self._rng.gumbel(size=len(probs))), kind="stable")
        return list(zip(ids[order].tolist(), probs[order].clip(max=1.0).tolist(), strict=True))
