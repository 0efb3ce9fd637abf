"""RASD (Quan et al. 2025, arXiv 2503.03434) as published: two trees, pruned and fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_specplug.drafters.contract import Context, Drafter, Int32
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.tree import DraftTree


def fuse(generated: DraftTree, retrieved: DraftTree) -> DraftTree:
    """Fuse a generated and a retrieved tree (RASD, sections 3.2 and 3.3).

    Retrieved paths whose first token is not in the generated tree are pruned. The others are
    inserted at their longest common prefix, so that no path is verified twice.

    Example:
        generated `a`, retrieved `a b` and `c d`: the result is `a b`.
    """
    tokens, parents = generated.tokens.tolist(), generated.parents.tolist()
    probs, sources = generated.probs.tolist(), generated.sources.tolist()
    place = {edge: node for node, edge in enumerate(zip(parents, tokens, strict=True))}
    moved: dict[int, int] = {-1: -1}
    for node, (parent, token) in enumerate(
        zip(retrieved.parents.tolist(), retrieved.tokens.tolist(), strict=True)
    ):
        if parent not in moved or (parent < 0 and (-1, token) not in place):
            continue
        edge = moved[parent], token
        if edge not in place:
            place[edge] = len(tokens)
            tokens.append(token)
            parents.append(edge[0])
            probs.append(0.0)
            sources.append(0)
        same = moved[node] = place[edge]
        probs[same] = max(probs[same], float(retrieved.probs[node]))
        sources[same] |= int(retrieved.sources[node])
    return DraftTree(
        np.array(tokens, np.int32),
        np.array(parents, np.int32),
        np.array(probs, np.float32),
        np.array(sources, np.uint16),
    )


class Rasd(TreeSearch):
    """Grows a generated and a retrieved tree, prunes the second and fuses both.

    The drafters that use the target's outputs stand for the paper's draft model and grow the
    generated tree, the others grow the retrieved one. Each tree has half of the nodes.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        mixer: Mixer,
        vocab_size: int,
        on_error: Callable[[Drafter, Exception], None],
    ) -> None:
        super().__init__(drafters, mixer, vocab_size, on_error)
        self._halves = [
            TreeSearch(drafters, Mixer(self.names), vocab_size, self._lost) for _ in range(2)
        ]
        model_derived = [bool(drafter.needs) for drafter in drafters]
        self._asks = [model_derived, [not derived for derived in model_derived]]

    def _lost(self, drafter: Drafter, error: Exception) -> None:
        """Drop a drafter that one half has dropped."""
        if drafter in self.drafters:
            super().drop(drafter, error)

    def begin(self, context: Context) -> None:
        super().begin(context)
        for half in self._halves:
            half._suppressed = context.suppressed

    def drop(self, drafter: Drafter, error: Exception) -> None:
        self._lost(drafter, error)
        for half in self._halves:
            half.drop(drafter, error)

    def _published(self, root: int, limit: int, depth: int, chain: bool) -> DraftTree | None:
        if chain:
            return None
        generated, retrieved = (
            half.grow(root, size, depth, ask=asked)
            for half, size, asked in zip(
                self._halves, (limit - limit // 2, limit // 2), self._asks, strict=True
            )
        )
        return fuse(generated, retrieved)

    def learn(self, emitted: Int32) -> None:
        super().learn(emitted)
        for half in self._halves:
            half.learn(emitted)
