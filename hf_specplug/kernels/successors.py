"""A table of fixed size from n-grams to their likeliest successors.

An n-gram is known by a 64-bit hash of its tokens, its key. Rows come in sets of `WAYS`: a key may
live in any row of its own set, so that one cache line of keys tells where it is; a new key in a
full set takes the row that was written longest ago.

Layout, R rows (a power of two, `WAYS` at least), K successors each: `keys` uint64[R], 0 = free;
`stamps` int32[R], when the row was last claimed, on a clock that its owner keeps; `visits`
int32[R], how often the n-gram was learned; `ids` int32[R, K], -1 = empty; `probs` float32[R, K],
descending, of equal ones the lower id first. Free rows are never read and may hold anything.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit

WAYS = 8
SHORTEST, LONGEST = 2, 4  # n-grams that are learned and looked up
ORDERS = LONGEST - SHORTEST + 1
VISITS = 3  # 1, 2 or 3, more
_PROBS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
PROB_STEPS = len(_PROBS) + 1
BUCKETS = ORDERS * VISITS * PROB_STEPS
EMPTY_GRAM = 0x2545F4914F6CDD1D
_MOST_VISITS = 1 << 30


@njit
def longer(key, token):
    """The key of an n-gram with one more token in front; start with uint64 `EMPTY_GRAM`."""
    key = (key ^ np.uint64(token + 1)) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    key ^= key >> np.uint64(32)
    return key if key != np.uint64(0) else np.uint64(1)


@njit
def _set(rows, key):
    """The first row of the set of a key."""
    return np.int64((key >> np.uint64(32)) & np.uint64(rows // WAYS - 1)) * WAYS


@njit
def find(keys, key):
    """The row of a key, -1 if it has none."""
    begin = _set(keys.shape[0], key)
    for row in range(begin, begin + WAYS):
        if keys[row] == key:
            return row
    return -1


@njit
def claim(keys, stamps, visits, ids, probs, key, stamp):
    """The row of a key, stamped: its own, else a free or the oldest one of its set, emptied."""
    begin = _set(keys.shape[0], key)
    oldest = begin
    for row in range(begin, begin + WAYS):
        if keys[row] == key:
            stamps[row] = stamp
            return row
        if keys[row] == np.uint64(0):  # the rows of a set are taken in order
            oldest = row
            break
        if stamps[row] < stamps[oldest]:
            oldest = row
    keys[oldest] = key
    stamps[oldest] = stamp
    visits[oldest] = 0
    for place in range(ids.shape[1]):
        ids[oldest, place] = -1
        probs[oldest, place] = 0.0
    return oldest


@njit
def _place(ids, row, token):
    """Where a row holds a token, -1 if it does not."""
    for place in range(ids.shape[1]):
        if ids[row, place] == token:
            return place
    return -1


@njit
def _rise(ids, probs, row, place):
    """Move one entry up to where it belongs in a row that is otherwise sorted."""
    token, weight = ids[row, place], probs[row, place]
    while place > 0:
        above = probs[row, place - 1]
        if above > weight or (above == weight and 0 <= ids[row, place - 1] < token):
            break
        ids[row, place], probs[row, place] = ids[row, place - 1], above
        place -= 1
    ids[row, place], probs[row, place] = token, weight


@njit
def mean(ids, probs, visits, row, new_ids, new_probs):
    """Take one more distribution into the running mean of a row.

    Args:
        new_ids, new_probs: int32[n], float32[n], distinct tokens; negative ids and probabilities
            that are not above 0 are passed over.

    After k visits the mean keeps the weight k / (k + 1) and the new distribution gets 1 / (k + 1);
    of all their tokens the K likeliest stay.
    """
    share = 1.0 / (visits[row] + 1)
    last = ids.shape[1] - 1
    for place in range(last + 1):
        probs[row, place] *= 1.0 - share
    for i in range(new_ids.shape[0]):  # known tokens first, as others may push them out
        place = _place(ids, row, new_ids[i]) if new_ids[i] >= 0 else -1
        if place >= 0 and new_probs[i] > 0:
            probs[row, place] += share * new_probs[i]
            _rise(ids, probs, row, place)
    for i in range(new_ids.shape[0]):
        token, weight = new_ids[i], np.float32(share * new_probs[i])
        if token < 0 or not weight > 0 or _place(ids, row, token) >= 0:
            continue
        least = probs[row, last]
        if ids[row, last] < 0 or weight > least or (weight == least and token < ids[row, last]):
            ids[row, last], probs[row, last] = token, weight
            _rise(ids, probs, row, last)
    if visits[row] < _MOST_VISITS:
        visits[row] += 1


@njit
def decayed(ids, probs, visits, row, token, decay):
    """Count `token` in a row: all weights times `decay`, then 1 more for it.

    A new token takes the place of the one with the smallest weight if the row is full.
    """
    for place in range(ids.shape[1]):
        probs[row, place] *= decay
    place = _place(ids, row, token)
    if place < 0:
        place = ids.shape[1] - 1
        ids[row, place], probs[row, place] = token, 0.0
    probs[row, place] += 1.0
    _rise(ids, probs, row, place)
    if visits[row] < _MOST_VISITS:
        visits[row] += 1


@njit
def learn(keys, stamps, visits, ids, probs, clock, text, tokens, parents, top_ids, top_probs):
    """Take distributions after the tokens of a tree, or a text, into the means of their n-grams.

    Args:
        clock: the last stamp given.
        text: int32[l], what precedes the first token; n-grams with a negative id are not learned.
        tokens, parents: int32[n], with the index of the token before each, -1 at the first.
        top_ids, top_probs: int32[n, k], float32[n, k], likeliest first.

    Returns:
        The last stamp given now.
    """
    for i in range(tokens.shape[0]):
        if not top_probs[i, 0] > 0:
            continue
        key = np.uint64(EMPTY_GRAM)
        place, before = i, text.shape[0]
        for order in range(1, LONGEST + 1):
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
            if order >= SHORTEST:
                clock += 1
                row = claim(keys, stamps, visits, ids, probs, key, clock)
                mean(ids, probs, visits, row, top_ids[i], top_probs[i])
    return clock


@njit
def restore(keys, stamps, visits, ids, probs, old_keys, old_visits, old_ids, old_probs):
    """Fill an empty table with rows, oldest first; where they do not fit, the last ones stay."""
    for i in range(old_keys.shape[0]):
        row = claim(keys, stamps, visits, ids, probs, old_keys[i], i + 1)
        visits[row] = old_visits[i]
        ids[row] = old_ids[i]
        probs[row] = old_probs[i]


@njit
def lookup(keys, pool, node, text, grams):
    """(row, order) of the longest n-gram before a search node that has a row; (-1, 0) if none has.

    Args:
        pool: int32[capacity, k], the search nodes: token in column 0, parent in column 1.
        text: int32[n], what comes before node 0, the last `LONGEST` tokens at least.
        grams: uint64[LONGEST], to work in.
    """
    key = np.uint64(EMPTY_GRAM)
    at = text.shape[0] - 1
    length = 0
    while length < LONGEST:
        if node != 0:
            token = pool[node, 0]
            node = pool[node, 1]
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
    for order in range(length, SHORTEST - 1, -1):
        row = find(keys, grams[order - 1])
        if row >= 0:
            return row, order
    return -1, 0


@njit
def expand(keys, visits, ids, probs, pool, frontier, text, grams, out):
    """Name the successors of the longest known n-gram before each frontier node.

    Args:
        pool, text, grams: as for `lookup`.
        frontier: int32[n], the nodes to expand.
        out: int32[n * K, 3], receives (search node, token, evidence bucket).

    Returns:
        The number of rows. The bucket tells order, visits and probability, in this order.
    """
    rows = 0
    for node in frontier:
        row, order = lookup(keys, pool, node, text, grams)
        if row < 0:
            continue
        often = 0 if visits[row] == 1 else (1 if visits[row] <= 3 else 2)
        begin = ((order - SHORTEST) * VISITS + often) * PROB_STEPS
        for place in range(ids.shape[1]):
            if ids[row, place] < 0 or not probs[row, place] > 0:
                break
            column = 0
            for step in _PROBS:
                if probs[row, place] >= step:
                    column += 1
            out[rows, 0] = node
            out[rows, 1] = ids[row, place]
            out[rows, 2] = begin + column
            rows += 1
    return rows
