"""STAND's n-grams: the target's mean distributions after the last four, three and two tokens.

They are kept in a table of `hf_specplug.kernels.successors`. (Song et al. 2025, arXiv 2506.04708.)
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import PROB_BUCKETS, PROB_EDGES, bucket
from hf_specplug.kernels.proposals import propose
from hf_specplug.kernels.successors import EMPTY_GRAM, claim, find, longer, mean
from hf_specplug.kernels.tree import PARENT, TOKEN

SHORTEST_GRAM, LONGEST_GRAM = 2, 4
"""Tokens of the n-grams that are learned and looked up."""

_VISIT_EDGES = (2, 4)
GRAM_LENGTHS = LONGEST_GRAM - SHORTEST_GRAM + 1
VISITS = len(_VISIT_EDGES) + 1
BUCKETS = GRAM_LENGTHS * VISITS * PROB_BUCKETS


@njit
def learn(keys, stamps, visits, ids, probs, clock, text, tokens, parents, top_ids, top_probs):
    """Add the target's distributions after the tokens of a tree, or a text, to their n-grams.

    Args:
        keys, stamps, visits, ids, probs: the table, changed in place.
        clock: the last stamp given.
        text: int32[l], what precedes the first token; n-grams with a negative id are not learned.
        tokens, parents: int32[n]; the parent of a token is the index of the one before it, -1 at
            the first.
        top_ids, top_probs: int32[n, k], float32[n, k], the likeliest next tokens, descending.

    Returns:
        The last stamp given now.
    """
    for i in range(tokens.shape[0]):
        if not top_probs[i, 0] > 0:
            continue
        key = np.uint64(EMPTY_GRAM)
        place, before = i, text.shape[0]
        for length in range(1, LONGEST_GRAM + 1):
            if place >= 0:
                token = tokens[place]
                place = parents[place]
            else:
                before -= 1
                if before < 0:
                    break
                token = text[before]
            if token < 0:
                break
            key = longer(key, token)
            if length >= SHORTEST_GRAM:
                clock += 1
                row = claim(keys, stamps, visits, ids, probs, key, clock)
                mean(visits, ids, probs, row, top_ids[i], top_probs[i])
    return clock


@njit
def lookup(keys, pool, node, text, grams):
    """Find the longest known n-gram at the end of a search node's path.

    Args:
        keys: of the table.
        pool: see `hf_specplug.kernels`.
        text: int32[n], the text up to node 0, the last `LONGEST_GRAM` tokens at least.
        grams: uint64[LONGEST_GRAM], scratch.

    Returns:
        (row, tokens of the n-gram), (-1, 0) if none has a row.
    """
    key = np.uint64(EMPTY_GRAM)
    at = text.shape[0] - 1
    length = 0
    while length < LONGEST_GRAM:
        if node != 0:
            token = pool[node, TOKEN]
            node = pool[node, PARENT]
        elif at >= 0:
            token = text[at]
            at -= 1
        else:
            break
        if token < 0:
            break
        key = longer(key, token)
        grams[length] = key
        length += 1
    for known in range(length, SHORTEST_GRAM - 1, -1):
        row = find(keys, grams[known - 1])
        if row >= 0:
            return row, known
    return -1, 0


@njit
def expand(keys, visits, ids, probs, pool, frontier, text, grams, out):
    """Propose to every frontier node the successors of the longest known n-gram of its path.

    Args:
        keys, visits, ids, probs: arrays of the table.
        pool, frontier: see `hf_specplug.kernels`.
        text, grams: as for `lookup`.
        out: int32[n * K, 3], receives the proposals.

    Returns:
        The number of rows. The evidence bucket tells the n-gram's length, its visits and the
        probability, in this order.
    """
    rows = 0
    for node in frontier:
        row, length = lookup(keys, pool, node, text, grams)
        if row < 0:
            continue
        often = bucket(visits[row], _VISIT_EDGES)
        begin = ((length - SHORTEST_GRAM) * VISITS + often) * PROB_BUCKETS
        for place in range(ids.shape[1]):
            if ids[row, place] < 0 or not probs[row, place] > 0:
                break
            evidence = begin + bucket(probs[row, place], PROB_EDGES)
            rows = propose(out, rows, node, ids[row, place], evidence)
    return rows
