"""The Token Recycling matrix: for each token, the target's likeliest next tokens at its last place.

Two arrays with one row per vocabulary entry: `ids` int32[V, K], likeliest first, -1 where empty,
and `probs` uint16[V, K], probabilities in units of 1 / `UNIT`. (Luo et al. 2024, arXiv 2408.08696,
section 3.1: the adjacency matrix.)
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import PROB_BUCKETS, PROB_EDGES, bucket
from hf_specplug.kernels.proposals import propose
from hf_specplug.kernels.tree import TOKEN

UNIT = 65535
_EDGES = tuple(edge * UNIT for edge in PROB_EDGES)


@njit
def update(ids, probs, tokens, top_ids, top_probs, last):
    """Write one row per token that the target has processed.

    Args:
        ids, probs: the matrix, changed in place.
        tokens: int32[n], the processed tokens; ids outside the matrix are skipped.
        top_ids, top_probs: int32[n, K], float32[n, K], the likeliest next tokens after each.
        last: int32[m], indices into `tokens` that are written once more at the end. A token that
            occurs twice in a tree thus keeps the row of its accepted place, or else of its last.
    """
    for write in range(tokens.shape[0] + last.shape[0]):
        i = write if write < tokens.shape[0] else last[write - tokens.shape[0]]
        token = tokens[i]
        if 0 <= token < ids.shape[0]:
            for k in range(ids.shape[1]):
                ids[token, k] = top_ids[i, k]
                probs[token, k] = np.uint16(top_probs[i, k] * UNIT + 0.5)


@njit
def expand(ids, probs, root, pool, frontier, out):
    """Propose the row of every frontier node's token.

    Args:
        root: the token at search node 0.
        pool, frontier: see `hf_specplug.kernels`.
        out: int32[n * K, 3], receives the proposals.

    Returns:
        The number of rows. The evidence bucket is `rank * PROB_BUCKETS + bucket of the
        probability`.
    """
    rows = 0
    for node in frontier:
        token = root if node == 0 else pool[node, TOKEN]
        if token < 0 or token >= ids.shape[0]:
            continue
        for rank in range(ids.shape[1]):
            if ids[token, rank] < 0:
                break
            evidence = rank * PROB_BUCKETS + bucket(probs[token, rank], _EDGES)
            rows = propose(out, rows, node, ids[token, rank], evidence)
    return rows
