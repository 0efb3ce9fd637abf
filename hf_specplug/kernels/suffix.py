"""Suffix arrays over tokens: building one in linear time, and checking one.

Built by induced sorting (SA-IS: Nong, Zhang and Chan 2011, "Two Efficient Algorithms for Linear
Time Suffix Array Construction").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_specplug.kernels._njit import njit


@njit
def classify(text):
    """Classify the suffixes of a text.

    Returns:
        (bool[n] whether suffix i is smaller than suffix i + 1, the paper's S-type; int32[m] the
        positions where runs of smaller ones begin, its LMS positions)
    """
    n = text.shape[0]
    smaller = np.zeros(n, np.bool_)
    count = 0
    for i in range(n - 2, -1, -1):
        if text[i] == text[i + 1]:
            smaller[i] = smaller[i + 1]
        else:
            smaller[i] = text[i] < text[i + 1]
        if smaller[i + 1] and not smaller[i]:
            count += 1
    starts = np.empty(count, np.int32)
    found = 0
    for i in range(1, n):
        if smaller[i] and not smaller[i - 1]:
            starts[found] = i
            found += 1
    return smaller, starts


@njit
def induce(text, smaller, starts, order, heads, ends, suffixes):
    """Sort all suffixes from the order of those at `starts`, in two passes over `suffixes`.

    Args:
        text: int32[n].
        smaller, starts: as `classify` returns them.
        order: int32[m], the positions in `starts`, sorted as far as is known.
        heads, ends: int32[alphabet], as `buckets` returns them.
        suffixes: int32[n], receives the result.
    """
    n = text.shape[0]
    for i in range(n):
        suffixes[i] = -1
    place = ends.copy()
    for position in order:
        token = text[position]
        suffixes[place[token]] = position
        place[token] += 1
    place[:] = heads
    token = text[n - 1]
    suffixes[place[token]] = n - 1
    place[token] += 1
    for i in range(n):
        before = suffixes[i] - 1
        if before >= 0 and not smaller[before]:
            token = text[before]
            suffixes[place[token]] = before
            place[token] += 1
    for token in range(heads.shape[0] - 1):
        place[token] = heads[token + 1]
    place[heads.shape[0] - 1] = n
    for i in range(n - 1, -1, -1):
        before = suffixes[i] - 1
        if before >= 0 and smaller[before]:
            token = text[before]
            place[token] -= 1
            suffixes[place[token]] = before


@njit
def buckets(text, smaller, alphabet):
    """Find where the suffixes of each token go.

    Returns:
        (int32[alphabet] the first place of each token's suffixes, int32[alphabet] the first place
        of its smaller suffixes, which follow the larger ones)
    """
    heads = np.zeros(alphabet, np.int32)
    ends = np.zeros(alphabet, np.int32)
    for i in range(text.shape[0]):
        heads[text[i]] += 1
        if not smaller[i]:
            ends[text[i]] += 1
    total = 0
    for token in range(alphabet):
        count = heads[token]
        heads[token] = total
        ends[token] += total
        total += count
    return heads, ends


@njit
def rename(text, starts, suffixes):
    """Name the runs between starts by rank: equal runs get equal names.

    A run goes from one start to the next one, both included.

    Returns:
        (int32[m] the starts, sorted as in `suffixes`; int32[m] names in text order; number of
        different names)
    """
    n, m = text.shape[0], starts.shape[0]
    number = np.full(n, -1, np.int32)
    for i in range(m):
        number[starts[i]] = i
    ordered = np.empty(m, np.int32)
    found = 0
    for i in range(n):
        if number[suffixes[i]] >= 0:
            ordered[found] = suffixes[i]
            found += 1
    names = np.empty(m, np.int32)
    name = 0
    names[number[ordered[0]]] = 0
    for i in range(1, m):
        one, other = ordered[i - 1], ordered[i]
        one_end = starts[number[one] + 1] if number[one] + 1 < m else n
        other_end = starts[number[other] + 1] if number[other] + 1 < m else n
        same = one_end - one == other_end - other
        while same and one < one_end:
            same = text[one] == text[other]
            one += 1
            other += 1
        # the token at the next start belongs to the run; a run at the end of the text is unique
        if same and (one == n or other == n or text[one] != text[other]):
            same = False
        if not same:
            name += 1
        names[number[ordered[i]]] = name
    return ordered, names, name + 1


def suffix_array(text: NDArray[np.int32], alphabet: int) -> NDArray[np.int32]:
    """Sort all suffixes of a text.

    Args:
        text: int32[n].
        alphabet: all tokens are in [0, alphabet).

    Returns:
        int32[n], the start positions of the suffixes, smallest first.

    Example:
        >>> suffix_array(np.array([1, 0, 1, 0], np.int32), 2).tolist()
        [3, 1, 2, 0]
    """
    n = text.shape[0]
    suffixes = np.empty(n, np.int32)
    if n < 2:
        suffixes[:] = 0
        return suffixes
    smaller, starts = classify(text)
    heads, ends = buckets(text, smaller, alphabet)
    induce(text, smaller, starts, starts, heads, ends, suffixes)
    if len(starts):
        ordered, names, count = rename(text, starts, suffixes)
        if count < len(starts):
            ordered = starts[suffix_array(names, count)]
        induce(text, smaller, starts, ordered, heads, ends, suffixes)
    return suffixes


@njit
def is_sorted(tokens, suffixes):
    """Whether `suffixes` is the suffix array of `tokens`."""
    n = tokens.shape[0]
    ranks = np.full(n + 1, -1, np.int32)
    for i in range(n):
        position = suffixes[i]
        if position < 0 or position >= n or ranks[position] >= 0:
            return False
        ranks[position] = i
    for i in range(1, n):
        one, other = suffixes[i - 1], suffixes[i]
        if tokens[one] > tokens[other]:
            return False
        if tokens[one] == tokens[other] and ranks[one + 1] >= ranks[other + 1]:
            return False
    return True
