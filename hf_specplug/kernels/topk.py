"""The k likeliest tokens of each row of logits, without sorting or exponentiating the vocabulary.

Rows are read in blocks. Only the k blocks with the largest maxima are searched.
Both loops over all logits are plain enough for the compiler to use vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_specplug.kernels._njit import njit, summing

_BLOCK = 128
_PART = 32  # of a block; parts without one of the k likeliest are skipped
_SIGN = np.int32(0x7FFFFFFF)
_LEAST_KEY = np.int32(-0x7F800001)  # the key of -inf
_INFINITE_KEY = np.int32(0x7F800000)  # keys beyond these two are those of NaN


def top_k(logits: Any, k: int) -> Any:
    """Find the k likeliest tokens of each row, and their probabilities.

    Args:
        logits: float32[n, V].
        k: how many, at least 1.

    Returns:
        (int32[n, k] ids, float32[n, k] probabilities, int32[n] argmax), the likeliest first; of
        equal logits the lower id comes first. NaN and -inf are skipped: where fewer than k numbers
        are left, the id is -1 and the probability 0. Probabilities are those of a softmax to 1e-3
        of their value. The argmax is that of numpy and torch, which is the first NaN if there is
        one.

    Example:
        >>> ids, probs, argmax = top_k(np.array([[0.0, 2.0, 2.0]], np.float32), 2)
        >>> ids.tolist(), probs.round(3).tolist(), argmax.tolist()
        ([[1, 2]], [[0.468, 0.468]], [1])
    """
    logits = np.ascontiguousarray(logits)
    ids = np.empty((len(logits), k), np.int32)
    probs = np.empty((len(logits), k), np.float32)
    argmax = np.empty(len(logits), np.int32)
    _fill(logits, logits.view(np.int32), ids, probs, argmax)
    return ids, probs, argmax


@njit
def _key(bits):
    """An int32 that is ordered like the float32 with these bits (NaN: beyond the infinities)."""
    return np.int32(bits ^ ((bits >> 31) & _SIGN))


@njit
def _largest_key(bits):
    largest = np.int32(-_SIGN)
    for i in range(bits.shape[0]):
        key = _key(bits[i])
        largest = key if key > largest else largest
    return largest


@njit
def _key_range(bits):
    """The lowest and the largest key."""
    lowest, largest = _SIGN, np.int32(-_SIGN)
    for i in range(bits.shape[0]):
        key = _key(bits[i])
        largest = key if key > largest else largest
        lowest = key if key < lowest else lowest
    return lowest, largest


@njit
def _argmax(logits):
    """The argmax as numpy and torch give it: the first NaN, or the first of the largest."""
    first = 0
    for i in range(logits.shape[0]):
        if np.isnan(logits[i]):
            return i
        if logits[i] > logits[first]:
            first = i
    return first


_ONE = np.float32(1.0)
_SQUARE, _CUBE = np.float32(0.49860737), np.float32(0.15104401)  # fitted where e^x counts
_SHRINK = np.float32(1 / 32)
_FARTHEST = np.float32(-0.75)  # what is smaller by a factor of e^24 does not count


@summing
def _sum_exp(logits, highest):
    """The sum of e^(logit - highest) to 1e-3, where e^x is computed as (e^(x / 32))^32."""
    total = np.float32(0.0)
    shift = highest * _SHRINK
    for i in range(logits.shape[0]):
        x = logits[i] * _SHRINK - shift
        x = x if x > _FARTHEST else _FARTHEST
        e = _CUBE * x + _SQUARE
        e = (e * x + _ONE) * x + _ONE
        e *= e
        e *= e
        e *= e
        e *= e
        total += e * e
    return total


@njit
def _kth_largest(keys, largest):
    """The k-th largest key that is not of NaN; that of -inf if there are fewer.

    Args:
        keys: int32[n].
        largest: int32[k], overwritten.
    """
    k = largest.shape[0]
    largest[:] = _LEAST_KEY
    for i in range(keys.shape[0]):
        key = keys[i]
        if largest[k - 1] < key <= _INFINITE_KEY:
            place = k - 1
            while place > 0 and largest[place - 1] < key:
                largest[place] = largest[place - 1]
                place -= 1
            largest[place] = key
    return largest[k - 1]


@njit
def _enter(ids, values, token, value):
    """Put a token at its place among the k likeliest; returns the value of the last one now."""
    last = values.shape[0] - 1
    place = last
    while place > 0 and values[place - 1] < value:
        values[place] = values[place - 1]
        ids[place] = ids[place - 1]
        place -= 1
    values[place] = value
    ids[place] = token
    return values[last]


@njit
def _fill(logits, bits, ids, probs, argmax):
    k = ids.shape[1]
    maxima = np.empty((logits.shape[1] + _BLOCK - 1) // _BLOCK, np.int32)
    largest = np.empty(k, np.int32)
    for row in range(logits.shape[0]):
        values = probs[row]  # logits at first
        for place in range(k):
            ids[row, place] = -1
            values[place] = -np.inf
        lowest, top = _SIGN, np.int32(-_SIGN)
        for block in range(maxima.shape[0]):
            begin = block * _BLOCK
            low, maxima[block] = _key_range(bits[row, begin : begin + _BLOCK])
            lowest, top = min(lowest, low), max(top, maxima[block])
        # the k likeliest are in the blocks with the k largest maxima; blocks with NaN come on top
        enough = _kth_largest(maxima, largest)
        least = np.float32(-np.inf)
        for block in range(maxima.shape[0]):
            if maxima[block] < enough:
                continue
            end = min((block + 1) * _BLOCK, logits.shape[1])
            for begin in range(block * _BLOCK, end, _PART):
                part = min(begin + _PART, end)
                if _largest_key(bits[row, begin:part]) < enough:
                    continue
                for token in range(begin, part):
                    value = logits[row, token]
                    if value > least:
                        least = _enter(ids[row], values, token, value)
        highest = values[0]
        argmax[row] = ids[row, 0]
        without_nan = lowest >= _LEAST_KEY and top <= _INFINITE_KEY
        if not without_nan or ids[row, 0] < 0 or highest == 0:  # the key of -0.0 is below that of 0
            argmax[row] = _argmax(logits[row])
        total = _sum_exp(logits[row], highest)
        for place in range(k):
            share = np.float32(0.0)
            if ids[row, place] >= 0:
                share = np.exp(values[place] - highest) / total
                share = share if share < _ONE else _ONE  # also if an infinity makes it NaN
            values[place] = share
