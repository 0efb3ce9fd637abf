"""Tokens that the noise of sampling favours, of those that the model says often."""

from __future__ import annotations

import math

import numpy as np

from hf_specplug.kernels._njit import njit

NAMED = 12
"""Tokens per position; more did not pay."""

SCORES = 16
RANKS = 3
BUCKETS = RANKS * SCORES


@njit
def favoured(weights, total, noise, tokens, buckets):
    """The tokens of highest p / e at one position: the pick, were p the target's distribution.

    Args:
        weights, total: float64[V] and their sum: p = weights / total.
        noise: float64[V'], u of each token; e = -ln(1 - u).
        tokens: int32[NAMED], receives the tokens, the highest first; -1 where there are no more.
        buckets: int32[NAMED], receives their evidence: by rank, and p / e.
    """
    scores = np.empty(NAMED, np.float64)
    for place in range(NAMED):
        scores[place], tokens[place] = 0.0, -1
    least = 0.0
    known = weights.shape[0] if weights.shape[0] < noise.shape[0] else noise.shape[0]
    for token in range(known):
        weight = weights[token]
        if weight <= least * noise[token]:  # as e > u: without a logarithm for most tokens
            continue
        exponential = -math.log1p(-noise[token])
        score = weight / (exponential if exponential > 1e-30 else 1e-30)
        if score > least:
            place = NAMED - 1
            while place > 0 and scores[place - 1] < score:
                scores[place], tokens[place] = scores[place - 1], tokens[place - 1]
                place -= 1
            scores[place], tokens[place] = score, token
            least = scores[NAMED - 1]
    for place in range(NAMED):
        if tokens[place] >= 0:
            score = 2.0 * math.log(scores[place] / total) + SCORES / 2
            step = 0.0 if score < 0.0 else (SCORES - 1.0 if score > SCORES - 1.0 else score)
            rank = 0 if place == 0 else (1 if place <= 2 else 2)
            buckets[place] = rank * SCORES + np.int64(step)


@njit
def expand(weights, total, noise, first, pool, frontier, marks, tokens, buckets, out):
    """Give every frontier node the tokens that are favoured at its position.

    Args:
        weights, total: as for `favoured`.
        noise: float64[positions, V'], to be read in a circle from row `first`, that of the root.
        pool: int32[capacity, k], the search nodes: depth in column 2.
        frontier: int32[n], the nodes to expand.
        marks: float64[positions], the first number of the row of noise of which tokens and buckets
            are known. A row is looked through once, when it is first needed.
        tokens, buckets: int32[positions, NAMED], what is favoured.
        out: int32[n * NAMED, 3], receives (search node, token, evidence bucket).

    Returns:
        The number of rows.
    """
    rows = 0
    for node in frontier:
        depth = 0 if node == 0 else pool[node, 2]
        if depth >= noise.shape[0]:
            continue
        row = (first + depth) % noise.shape[0]
        if marks[row] != noise[row, 0]:
            favoured(weights, total, noise[row], tokens[row], buckets[row])
            marks[row] = noise[row, 0]
        for place in range(NAMED):
            if tokens[row, place] < 0:
                break
            out[rows, 0] = node
            out[rows, 1] = tokens[row, place]
            out[rows, 2] = buckets[row, place]
            rows += 1
    return rows
