"""Plain-Python twins of the humble contexts: the kernels of `frequency` and `sparse`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.helpers.twins import Weighted, bucket, counted, twin_of

Likely = Sequence[tuple[int, float]]
"""(token, probability) of the target's likeliest tokens."""


@twin_of("frequency.count", "frequency.rise", "frequency.expand")
def frequent(tokens: Sequence[int], decay: float, vocab: int) -> list[tuple[int, int]]:
    """(token, evidence bucket) of the 16 most frequent tokens, the last of which counts 1."""
    counts: dict[int, float] = {}
    for token in tokens:
        if 0 <= token < vocab:
            counts = {known: count * decay for known, count in counts.items()}
            counts[token] = counts.get(token, 0.0) + 1.0
    first = sorted(counts, key=lambda token: (-counts[token], token))[:16]
    shares = [counts[token] / sum(counts.values()) for token in first]
    edges = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15)
    steps = [bucket(share, edges) for share in shares]
    return [(token, steps[rank] * 16 + rank) for rank, token in enumerate(first)]


@twin_of("successors.add")
def added(row: Weighted, token: int, weight: float, width: int) -> Weighted:
    """Add to the weight of a token; a new one needs a free place or a lighter last token."""
    counts = dict(row)
    if token < 0 or not weight > 0:
        return row
    if token not in counts and len(row) == width:
        if row[-1][1] >= weight:
            return row
        del counts[row[-1][0]]
    counts[token] = float(np.float32(counts.get(token, 0.0) + np.float32(weight)))
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


CONTEXTS = ((1,), (1, 2), (2,), (1, 3), (2, 3))
"""Places back of the tokens of each context."""


@twin_of("sparse.learn", "sparse.pool_contexts", "sparse.expand")
class Sparse:
    """What followed each context, in a table without a limit."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.rows: dict[tuple[tuple[int, ...], tuple[int, ...]], Weighted] = {}

    def learn(self, before: Sequence[int], token: int, likely: Likely = ()) -> None:
        """Learn a token, and what was likely in its place, after the text `before`."""
        if token < 0:
            return
        for key in keys(before):
            row = counted(self.rows.get(key, []), token, self.decay, 8)
            for other, prob in likely:
                if prob > 0.05:  # they descend
                    row = added(row, other, prob, 8)
            self.rows[key] = row

    def chances(self, before: Sequence[int]) -> dict[int, float]:
        """P of each token that a context names after a text."""
        rest: dict[int, float] = {}
        for key in keys(before):
            row = self.rows.get(key, [])
            whole = 2.0 + sum(weight for _, weight in row)
            for token, weight in row[:6]:
                rest[token] = rest.get(token, 1.0) * max(1.0 - weight / whole, 0.02)
        return {token: 1.0 - left for token, left in rest.items()}


def keys(before: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The contexts at the end of a text whose tokens are all there."""
    found = []
    for places in CONTEXTS:
        if len(before) >= max(places):
            tokens = tuple(before[-place] for place in places)
            if min(tokens) >= 0:
                found.append((places, tokens))
    return found


def score(prob: float) -> int:
    """The step of the log-odds in the evidence."""
    return min(max(int(20 + 4 * math.log(prob / (1 - prob))), 0), 39)
