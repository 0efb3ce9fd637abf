"""Tokens that the known sampling noise favours, weighted by how often the model says them."""

from __future__ import annotations

import math

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import bucket
from hf_specplug.kernels.proposals import propose
from hf_specplug.kernels.tree import DEPTH

FAVOURED = 12
"""Tokens proposed per position; more did not increase the accept length."""

SCORES = 16
_RANK_EDGES = (1, 3)
RANKS = len(_RANK_EDGES) + 1
BUCKETS = RANKS * SCORES


@njit
def count(weights, total, tokens, amount):
    """Add `amount` to the weight of each token.

    Args:
        weights, total: float64[V] and float64[1], their sum; changed in place.
        tokens: int32[n]; ids outside [0, V) are skipped.
    """
    for token in tokens:
        if 0 <= token < weights.shape[0]:
            weights[token] += amount
            total[0] += amount


@njit
def count_likely(weights, total, ids, probs, rows):
    """Add to the weight of likely tokens their probability.

    Args:
        weights, total: as for `count`.
        ids, probs: int32[n, k], float32[n, k], the target's likeliest tokens.
        rows: int32[m], the rows of them to count.
    """
    for row in rows:
        for place in range(ids.shape[1]):
            token, prob = ids[row, place], probs[row, place]
            if 0 <= token < weights.shape[0] and prob > 0:
                weights[token] += prob
                total[0] += prob


@njit
def favoured(weights, total, noise, tokens, buckets):
    """Find the tokens of highest p / e at one position.

    Seeded sampling picks the token of highest p / e (the exponential form of the Gumbel-max trick).
    Here p is not the target's distribution but how often the model says each token in any context.

    Args:
        weights, total: float64[V] and their sum: p = weights / total.
        noise: float64[V'], a uniform number u for each token; e = -ln(1 - u).
        tokens: int32[FAVOURED], receives the tokens, the highest p / e first; -1 = no more.
        buckets: int32[FAVOURED], receives their evidence buckets: by rank, then by ln(p / e).
    """
    scores = np.empty(FAVOURED, np.float64)
    for place in range(FAVOURED):
        scores[place], tokens[place] = 0.0, -1
    least = 0.0
    known = weights.shape[0] if weights.shape[0] < noise.shape[0] else noise.shape[0]
    for token in range(known):
        weight = weights[token]
        if weight <= least * noise[token]:  # since e > u; spares the logarithm of most tokens
            continue
        exponential = -math.log1p(-noise[token])
        score = weight / (exponential if exponential > 1e-30 else 1e-30)
        if score > least:
            place = FAVOURED - 1
            while place > 0 and scores[place - 1] < score:
                scores[place], tokens[place] = scores[place - 1], tokens[place - 1]
                place -= 1
            scores[place], tokens[place] = score, token
            least = scores[FAVOURED - 1]
    for place in range(FAVOURED):
        if tokens[place] >= 0:
            score = 2.0 * math.log(scores[place] / total) + SCORES / 2
            step = 0.0 if score < 0.0 else (SCORES - 1.0 if score > SCORES - 1.0 else score)
            buckets[place] = bucket(place, _RANK_EDGES) * SCORES + np.int64(step)


@njit
def expand(weights, total, noise, first, pool, frontier, marks, tokens, buckets, out):
    """Propose to every frontier node the tokens that the noise favours at its position.

    Args:
        weights, total: as for `favoured`.
        noise: float64[positions, V'], a ring buffer; row `first` belongs to the pick at the root.
        pool, frontier: see `hf_specplug.kernels`.
        marks: float64[positions], the first number of the noise row that `tokens` and `buckets`
            were computed from. A row is computed once, when it is first needed.
        tokens, buckets: int32[positions, FAVOURED], the results of `favoured` by noise row.
        out: int32[n * FAVOURED, 3], receives the proposals.

    Returns:
        The number of rows.
    """
    rows = 0
    for node in frontier:
        depth = 0 if node == 0 else pool[node, DEPTH]
        if depth >= noise.shape[0]:
            continue
        row = (first + depth) % noise.shape[0]
        if marks[row] != noise[row, 0]:
            favoured(weights, total, noise[row], tokens[row], buckets[row])
            marks[row] = noise[row, 0]
        for place in range(FAVOURED):
            if tokens[row, place] < 0:
                break
            rows = propose(out, rows, node, tokens[row, place], buckets[row, place])
    return rows
