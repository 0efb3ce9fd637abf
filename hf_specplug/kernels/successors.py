"""A table of fixed size from n-grams to their likeliest successors.

An n-gram is found by a 64-bit hash of its tokens, its key. Rows come in sets of `WAYS`: a key may
be in any row of its own set, so that one cache line of keys tells where it is. A new key in a full
set replaces the row that was claimed longest ago.

A table has R rows (a power of two, `WAYS` at least) with K successors each:

    keys     uint64[R]      0 = free
    stamps   int32[R]       when the row was last claimed, on a clock that its owner keeps
    visits   int32[R]       how often the n-gram was learned
    ids      int32[R, K]    its successors, -1 = empty
    weights  float32[R, K]  their probabilities (or counts), descending; of equal ones the lower id
                            comes first

Free rows may hold anything. Kernels take the arrays that they need, in this order, not one tuple of
them: numba looks longer at tuples. STAND's `expand` takes 1.9 us on one node; a NamedTuple adds
0.9 us, a plain tuple 0.1 us (0.3 us of 2.8 us for the tri-grams' `expand`).
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit

WAYS = 8

EMPTY_GRAM = 0x2545F4914F6CDD1D
"""The key of the n-gram without tokens."""

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
    """The row of a key; -1 if it has none."""
    begin = _set(keys.shape[0], key)
    for row in range(begin, begin + WAYS):
        if keys[row] == key:
            return row
    return -1


@njit
def claim(keys, stamps, visits, ids, weights, key, stamp):
    """The row of a key, stamped: its own, or else a free or the oldest row of its set, emptied."""
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
        weights[oldest, place] = 0.0
    return oldest


@njit
def _place(ids, row, token):
    """The place of a token in a row; -1 if the row does not hold it."""
    for place in range(ids.shape[1]):
        if ids[row, place] == token:
            return place
    return -1


@njit
def _rise(ids, weights, row, place):
    """Move one entry up to its place in a row that is otherwise sorted."""
    token, weight = ids[row, place], weights[row, place]
    while place > 0:
        above = weights[row, place - 1]
        if above > weight or (above == weight and 0 <= ids[row, place - 1] < token):
            break
        ids[row, place], weights[row, place] = ids[row, place - 1], above
        place -= 1
    ids[row, place], weights[row, place] = token, weight


@njit
def mean(visits, ids, probs, row, new_ids, new_probs):
    """Add one more distribution to the running mean that a row holds.

    After k visits the mean keeps the weight k / (k + 1) and the new distribution gets 1 / (k + 1).
    Of all their tokens the K likeliest stay.

    Args:
        visits, ids, probs: arrays of the table, changed in place at `row`.
        new_ids, new_probs: int32[n], float32[n], n < 64, distinct tokens. Negative ids and
            probabilities that are not above 0 are skipped.
    """
    if visits[row] == 0:
        _first(ids, probs, row, new_ids, new_probs)
    else:
        _average(ids, probs, row, new_ids, new_probs, 1.0 / (visits[row] + 1))
    if visits[row] < _MOST_VISITS:
        visits[row] += 1


@njit
def _first(ids, probs, row, new_ids, new_probs):
    """Fill an empty row: most n-grams of a tree are new, and their tokens need no search."""
    last = ids.shape[1] - 1
    end = 0
    for i in range(new_ids.shape[0]):
        token, weight = new_ids[i], new_probs[i]
        if token < 0 or not weight > 0:
            continue
        if end <= last:
            place = end
            end += 1
        elif weight > probs[row, last] or (weight == probs[row, last] and token < ids[row, last]):
            place = last
        else:
            continue
        ids[row, place], probs[row, place] = token, weight
        _rise(ids, probs, row, place)


@njit
def _average(ids, probs, row, new_ids, new_probs, share):
    """Give a new distribution its share in the mean of a row."""
    last = ids.shape[1] - 1
    for place in range(last + 1):
        probs[row, place] *= 1.0 - share
    unknown = 0
    for i in range(new_ids.shape[0]):  # known tokens first: others may push them out
        place = _place(ids, row, new_ids[i]) if new_ids[i] >= 0 else -1
        if place < 0:
            unknown |= 1 << i
        elif new_probs[i] > 0:
            probs[row, place] += share * new_probs[i]
            _rise(ids, probs, row, place)
    for i in range(new_ids.shape[0]):
        token, weight = new_ids[i], np.float32(share * new_probs[i])
        if token < 0 or not weight > 0 or not (unknown >> i) & 1:
            continue
        least = probs[row, last]
        if ids[row, last] < 0 or weight > least or (weight == least and token < ids[row, last]):
            ids[row, last], probs[row, last] = token, weight
            _rise(ids, probs, row, last)


@njit
def count(visits, ids, weights, row, token, decay):
    """Count a token in a row: all weights are multiplied by `decay`, then the token's grows by 1.

    A new token replaces the one of smallest weight if the row is full.
    """
    for place in range(ids.shape[1]):
        weights[row, place] *= decay
    place = _place(ids, row, token)
    if place < 0:
        place = ids.shape[1] - 1
        ids[row, place], weights[row, place] = token, 0.0
    weights[row, place] += 1.0
    _rise(ids, weights, row, place)
    if visits[row] < _MOST_VISITS:
        visits[row] += 1


@njit
def add(ids, weights, row, token, weight):
    """Add to the weight of a token in a row.

    A new token replaces the one of smallest weight if the row is full, and it weighs more. Negative
    ids and weights that are not above 0 are skipped.
    """
    if token < 0 or not weight > 0:
        return
    place = _place(ids, row, token)
    if place < 0:
        place = ids.shape[1] - 1
        if ids[row, place] >= 0 and weights[row, place] >= weight:
            return
        ids[row, place], weights[row, place] = token, 0.0
    weights[row, place] += weight
    _rise(ids, weights, row, place)


@njit
def restore(keys, stamps, visits, ids, weights, old_keys, old_visits, old_ids, old_weights):
    """Fill an empty table with saved rows, oldest first; of too many the last ones stay."""
    for i in range(old_keys.shape[0]):
        row = claim(keys, stamps, visits, ids, weights, old_keys[i], i + 1)
        visits[row] = old_visits[i]
        ids[row] = old_ids[i]
        weights[row] = old_weights[i]
