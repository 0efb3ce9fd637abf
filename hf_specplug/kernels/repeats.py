"""What occurs more than once in a text: from its suffix array, in one pass over the intervals.

Common prefixes by Kasai et al., "Linear-time longest-common-prefix computation in suffix arrays and
its applications" (2001); intervals by Abouelhoda, Kurtz and Ohlebusch, "Replacing suffix trees with
enhanced suffix arrays" (2004). Nothing that is found holds the separator of documents.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit

CAP = 64
"""Occurrences whose token before is looked at; of more, as many at even distances."""


@njit
def common_prefixes(text, suffixes, separator):
    """How many tokens suffix i shares with the one sorted before it, as int32[n].

    Args:
        text: int32[n].
        suffixes: int32[n], the suffix array of `text`.
        separator: shared by no two suffixes.
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
    """The token before a suffix; the separator at the beginning of the text."""
    position = suffixes[place]
    return text[position - 1] if position > 0 else separator


@njit
def _share_before(text, suffixes, begin, end, separator):
    """The share of the token that stands most often before some suffixes, if more than half."""
    size = end - begin
    looked = min(size, CAP)
    candidate, votes = separator, 0
    for i in range(looked):  # the majority vote of Boyer and Moore
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
    """Find the maximal repeats of a text; those of (nearly) the same count are found once.

    A repeat is left out if one more token, before or after it, makes one that occurs `nearly` as
    often (a share of its count, above 1/2): then there is a longer one that holds it.

    Args:
        shared: int32[n], see `common_prefixes`.
        least: tokens of a repeat.
        often: times that it occurs.
        found: int32[n, 3], receives (position, tokens, count).

    Returns:
        How many were found.
    """
    n = text.shape[0]
    number = 0
    lengths = np.zeros(n + 1, np.int32)  # a stack of intervals that are still open
    begins = np.zeros(n + 1, np.int32)
    widest = np.zeros(n + 1, np.int32)  # of the intervals inside, by one more token
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
                found[number, 0] = suffixes[begin]
                found[number, 1] = tokens
                found[number, 2] = inside
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
        found: int32[n, 2], receives (position, count), sorted by their tokens.

    Returns:
        How many different ones there are.
    """
    n = text.shape[0]
    number = 0
    for i in range(n):
        if shared[i] >= size:
            found[number - 1, 1] += 1
            continue
        position = suffixes[i]
        end = position + size
        if end > n:
            continue
        while position < end and text[position] != separator:
            position += 1
        if position == end:
            found[number, 0] = suffixes[i]
            found[number, 1] = 1
            number += 1
    return number
