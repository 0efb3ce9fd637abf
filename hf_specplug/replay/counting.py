"""Counting what candidates were worth: how often those of each evidence bucket were right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Int32
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.kernels import tree
from hf_specplug.replay.simulate import Texts
from hf_specplug.tree import DraftTree
from hf_specplug.verify.noise import POSITIONS, draw


class Counts:
    """What one pass over some texts counts.

    Attributes:
        seen: float64[buckets], candidates whose evidence fell into each bucket.
        hits: float64[buckets], how many of them were the next token.
        weights: the sum of the mixer's weights over all steps.
        noise: float64[n, vocabulary], of all positions of the current text; None if not sampled.
    """

    def __init__(self, vocab_size: int) -> None:
        self.seen: NDArray[np.float64] = np.zeros(0)
        self.hits: NDArray[np.float64] = np.zeros(0)
        self.weights: Any = 0.0
        self.steps = 0
        self.noise: NDArray[np.float64] | None = None
        self._vocab = vocab_size

    def follow(self, texts: Texts) -> Iterator[Any]:
        """Pass the texts on, with the noise of each that was sampled."""
        for text in texts:
            self.noise = None
            if text.name.startswith("seed "):
                generator = torch.Generator().manual_seed(int(text.name.split()[1]))
                count = len(text.answer) + POSITIONS
                self.noise = np.stack([draw(generator, self._vocab) for _ in range(count)])
            yield text

    def search(self) -> type[TreeSearch]:
        """A search that counts here."""
        counts = self

        class Counting(TreeSearch):
            def _prepare(self) -> None:
                self._position = 1  # of the next token in the answer
                if len(counts.seen) != len(self._table):
                    counts.seen, counts.hits = np.zeros((2, len(self._table)))

            def grow(self, *args: Any, **named: Any) -> DraftTree:
                if counts.noise is not None:
                    ahead = slice(self._position, self._position + POSITIONS)
                    named["noise"] = counts.noise[ahead], 0
                return super().grow(*args, **named)

            def learn(self, emitted: Int32) -> None:
                self._position += len(emitted)
                if not self._grown:
                    return
                self._count(emitted)
                super().learn(emitted)
                counts.weights = counts.weights + self._mixer.weights
                counts.steps += 1

            def _count(self, emitted: Int32) -> None:
                """Along the emitted tokens, count all candidates at each node of the tree."""
                node = 0
                for token in emitted.tolist():
                    expanded = self._pool[node, tree.ROUND]
                    child = int(self._pool[node, tree.FIRST]) if expanded else 0
                    node = 0
                    while child:
                        buckets = self._evidence[child][self._evidence[child] > 0]
                        counts.seen[buckets] += 1
                        if self._pool[child, tree.TOKEN] == token:
                            counts.hits[buckets] += 1
                            node = child
                        child = int(self._pool[child, tree.NEXT])
                    if not node:
                        return

        return Counting
