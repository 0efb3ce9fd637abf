"""Repeated runs of tokens in a text, from its suffix array and the common prefixes of neighbours.

Common prefixes as in Kasai et al. 2001, "Linear-Time Longest-Common-Prefix Computation in Suffix
Arrays and Its Applications"; intervals as in Abouelhoda, Kurtz and Ohlebusch 2004, "Replacing
Suffix Trees with Enhanced Suffix Arrays". No run contains the separator of documents.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit

SAMPLE = 64
"""Occurrences whose preceding token is read at most: of more, as many at even distances."""

RUN_POSITION, RUN_TOKENS, RUN_COUNT = range(3)
"""Columns of the runs that `repeats` finds."""

NGRAM_POSITION, NGRAM_COUNT = range(2)
"""Columns of the runs that `grams` counts."""


@njit
def common_prefixes(text, suffixes, separator):
    """Count the tokens that each suffix shares with the one sorted before it.

    Args:
        text: int32[n].
        suffixes: int32[n], the suffix array of `text`.
        separator: a token that ends what two suffixes share.

    Returns:
        int32[n], by place in `suffixes`.
    """
    n = text.shape[0]
    ranks = np.empty(n, np.int32)
    for i in range(n):
        ranks[suffixes[i]] = i
    shared = np.zeros(n, np.int32)
    length = 0
    for position in range(n):
        rank = ranks[position]
        if rank == 0:
            length = 0
            continue
        other = suffixes[rank - 1]
        end = n - max(position, other)
        while length < end:
            token = text[position + length]
            if token == separator or token != text[other + length]:
                break
            length += 1
        shared[rank] = length
        length = max(length - 1, 0)
    return shared


@njit
def _before(text, suffixes, place, separator):
    """The token before a suffix; the separator for the whole text."""
    position = suffixes[place]
    return text[position - 1] if position > 0 else separator


@njit
def _share_before(text, suffixes, begin, end, separator):
    """The share of the majority token before the suffixes [begin, end); 1/2 at most if none is."""
    size = end - begin
    looked = min(size, SAMPLE)
    candidate, votes = separator, 0
    for i in range(looked):  # Boyer and Moore's majority vote
        token = _before(text, suffixes, begin + (i * size + size // 2) // looked, separator)
        if votes == 0:
            candidate, votes = token, 1
        else:
            votes += 1 if token == candidate else -1
    if candidate == separator:
        return 0.0
    count = 0
    for i in range(looked):
        place = begin + (i * size + size // 2) // looked
        count += _before(text, suffixes, place, separator) == candidate
    return count / looked


@njit
def repeats(text, suffixes, shared, separator, least, often, nearly, found):
    """Find the maximal repeats of a text.

    A repeat is left out if it occurs nearly as often with one more token before or after it: then
    the longer repeat is found.

    Args:
        text, suffixes, separator: as for `common_prefixes`.
        shared: int32[n], its result.
        least: tokens of a repeat, at least.
        often: its occurrences, at least.
        nearly: the share of the occurrences that counts as "nearly as often", above 1/2.
        found: int32[n, 3], receives (position of one occurrence, tokens, occurrences).

    Returns:
        The number of repeats.
    """
    n = text.shape[0]
    number = 0
    lengths = np.zeros(n + 1, np.int32)  # a stack of the open intervals
    begins = np.zeros(n + 1, np.int32)
    widest = np.zeros(n + 1, np.int32)  # occurrences of the largest interval inside
    top = 0
    for i in range(1, n + 1):
        length = shared[i] if i < n else 0
        begin, inside = i - 1, 1
        while lengths[top] > length:
            begin, tokens = begins[top], lengths[top]
            inside = i - begin
            if (
                tokens >= least
                and inside >= often
                and widest[top] < nearly * inside
                and _share_before(text, suffixes, begin, i, separator) < nearly
            ):
                found[number, RUN_POSITION] = suffixes[begin]
                found[number, RUN_TOKENS] = tokens
                found[number, RUN_COUNT] = inside
                number += 1
            top -= 1
            if lengths[top] >= length:
                widest[top] = max(widest[top], inside)
        if lengths[top] < length:
            top += 1
            lengths[top], begins[top], widest[top] = length, begin, inside
    return number


@njit
def grams(text, suffixes, shared, separator, size, found):
    """Count all runs of `size` tokens.

    Args:
        text, suffixes, shared, separator: as for `repeats`.
        found: int32[n, 2], receives (position of one occurrence, occurrences), sorted by the tokens
            of the runs.

    Returns:
        The number of different runs.
    """
    n = text.shape[0]
    number = 0
    for i in range(n):
        if shared[i] >= size:
            found[number - 1, NGRAM_COUNT] += 1
            continue
        position = suffixes[i]
        end = position + size
        if end > n:
            continue
        while position < end and text[position] != separator:
            position += 1
        if position == end:
            found[number, NGRAM_POSITION] = suffixes[i]
            found[number, NGRAM_COUNT] = 1
            number += 1
    return number
