"""The Token Recycling matrix: for every token, the tokens that the model last saw as likely next.

Rows are `ids` int32[V, K], most likely first, -1 where empty, and `probs` uint16[V, K],
probabilities in units of 1 / 65535.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit

UNIT = 65535
_PROB_STEPS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
PROB_BUCKETS = len(_PROB_STEPS) + 1


@njit
def update(ids, probs, tokens, top_ids, top_probs, last):
    """Write one row per token: what the model said after it.

    Args:
        ids, probs: the matrix, changed in place.
        tokens: int32[n], the tokens that were fed; those outside the matrix are passed over.
        top_ids, top_probs: int32[n, K], float32[n, K], the most likely next tokens at each.
        last: int32[m], indices into `tokens` written once more at the end. A token that stands
            twice in a tree thus always keeps the row of its accepted place, else of its last one.
    """
    for turn in range(tokens.shape[0] + last.shape[0]):
        i = turn if turn < tokens.shape[0] else last[turn - tokens.shape[0]]
        token = tokens[i]
        if 0 <= token < ids.shape[0]:
            for k in range(ids.shape[1]):
                ids[token, k] = top_ids[i, k]
                probs[token, k] = np.uint16(top_probs[i, k] * UNIT + 0.5)


@njit
def expand(ids, probs, root, pool, frontier, out):
    """Name the recycled successors of every frontier node's token.

    Args:
        root: the token at search node 0.
        pool: int32[capacity, k], the search nodes: token in column 0.
        frontier: int32[n], the nodes to expand.
        out: int32[n * K, 3], receives (search node, token, evidence bucket).

    Returns:
        The number of rows. The bucket is `rank * PROB_BUCKETS + step of the probability`.
    """
    rows = 0
    for node in frontier:
        token = root if node == 0 else pool[node, 0]
        if token < 0 or token >= ids.shape[0]:
            continue
        for rank in range(ids.shape[1]):
            if ids[token, rank] < 0:
                break
            column = 0
            for step in _PROB_STEPS:
                if probs[token, rank] >= step * UNIT:
                    column += 1
            out[rows, 0] = node
            out[rows, 1] = ids[token, rank]
            out[rows, 2] = rank * PROB_BUCKETS + column
            rows += 1
    return rows
