"""Retrieval from a suffix array: the longest suffix of a path that occurs, and what follows it.

REST's look-up (He et al. 2023, arXiv 2311.08252, section 3), for every path of a tree. The matches
of a path are an interval of the suffix array, which is part of its parent's: bisection narrows it
token by token.

No value read from a store is trusted: a position outside the text counts as its end, so that a
damaged file gives wrong proposals, but no crash.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import COUNT_EDGES, bucket
from hf_specplug.kernels.proposals import (
    PROPOSAL_BUCKET,
    PROPOSAL_TOKEN,
    propose,
)
from hf_specplug.kernels.tree import PARENT, TOKEN

LONGEST_MATCH, SHORTEST_MATCH = 16, 2
"""Tokens of a match."""

PROPOSED = 12
"""Proposals per node at most."""

SAMPLE = 64
"""Occurrences that are counted at most: of more, as many at even distances."""

MATCH_NODE, MATCH_TOKEN, MATCH_LENGTH, MATCH_COUNT, MATCH_TOTAL = range(5)
"""Columns of one shard's rows: the search node; the token that follows; tokens of the match; how
often it is followed by the token; occurrences of the match (both of the counted ones)."""
MATCH_COLUMNS = 5

_FEW = 4  # occurrences of a match; with fewer, a shorter match is counted too

_LENGTH_EDGES = (3, 4, 5, 7, 10, 13, 16)
_SHARE_EDGES = (0.02, 0.1, 0.25, 0.5, 0.8)
LENGTHS = len(_LENGTH_EDGES) + 1
SUPPORTS = len(COUNT_EDGES) + 1
SHORTER_BUCKETS = len(_SHARE_EDGES) + 1
LONGEST_BUCKETS = SHORTER_BUCKETS * SUPPORTS
BUCKETS = LENGTHS * (LONGEST_BUCKETS + SHORTER_BUCKETS)


@njit
def token_at(tokens, position):
    """The token at a position; -1 outside the text."""
    if position < 0 or position >= tokens.shape[0]:
        return np.int64(-1)
    return np.int64(tokens[position])


@njit
def narrow(tokens, suffixes, low, high, offset, token):
    """The part of an interval of suffixes whose token at `offset` is `token`.

    Args:
        tokens, suffixes: a text and its suffix array.
        low, high: the interval [low, high) of `suffixes`; they share their first `offset` tokens.

    Returns:
        (low, high)
    """
    begin, end = low, high
    while begin < end:
        middle = (begin + end) // 2
        if token_at(tokens, np.int64(suffixes[middle]) + offset) < token:
            begin = middle + 1
        else:
            end = middle
    low = begin
    end = high
    while begin < end:
        middle = (begin + end) // 2
        if token_at(tokens, np.int64(suffixes[middle]) + offset) <= token:
            begin = middle + 1
        else:
            end = middle
    return low, begin


@njit
def advance(tokens, suffixes, low, high, emitted):
    """Update the matches of the text after more tokens.

    Args:
        tokens, suffixes: see `narrow`.
        low, high: int32[LONGEST_MATCH + 1], at [l] the interval of the text's last l tokens.
        emitted: int32[n]; -1 stands for "no token", which nothing matches.

    Returns:
        The length of the longest match in tokens.
    """
    for token in emitted:
        for length in range(LONGEST_MATCH, 0, -1):
            low[length], high[length] = 0, 0
            if token >= 0 and high[length - 1] > low[length - 1]:
                low[length], high[length] = narrow(
                    tokens, suffixes, low[length - 1], high[length - 1], length - 1, token
                )
    longest = LONGEST_MATCH
    while longest > 0 and high[longest] <= low[longest]:
        longest -= 1
    return longest


@njit
def _interval(tokens, suffixes, low, high, pool, node, length):
    """Compute the interval of a search node's last `length` tokens, from its ancestors' ones."""
    climbed = np.empty(LONGEST_MATCH + 1, np.int32)
    steps = 0
    while low[node, length - steps] < 0:
        climbed[steps] = node
        node = pool[node, PARENT]
        steps += 1
    while steps > 0:
        parent, node = node, climbed[steps - 1]
        steps -= 1
        level = length - steps
        begin, end = low[parent, level - 1], high[parent, level - 1]
        low[node, level], high[node, level] = 0, 0
        if end > begin:
            low[node, level], high[node, level] = narrow(
                tokens, suffixes, begin, end, level - 1, pool[node, TOKEN]
            )


@njit
def _continuations(tokens, suffixes, vocab, low, high, length, found):
    """Count what follows a match.

    `found` int32[SAMPLE, 2] receives (token, count) rows; their number is returned.
    """
    size = np.int64(high) - low
    looked = min(size, SAMPLE)
    distinct = 0
    for i in range(looked):
        place = low + (i * size + size // 2) // looked if size > SAMPLE else low + i
        token = token_at(tokens, np.int64(suffixes[place]) + length)
        if token < 0 or token >= vocab:  # the end of a document
            continue
        if distinct > 0 and found[distinct - 1, 0] == token:
            found[distinct - 1, 1] += 1
        else:
            found[distinct, 0] = token
            found[distinct, 1] = 1
            distinct += 1
    return distinct


@njit
def expand(tokens, suffixes, vocab, low, high, longest, pool, frontier, limit, ends, out):
    """Find what follows the longest suffixes of each frontier node's path in one shard.

    Args:
        tokens, suffixes: the text of the shard and its suffix array; any values are safe.
        vocab: an id of `vocab` or more separates documents.
        low, high: int32[capacity, LONGEST_MATCH + 1], the intervals of each search node by match
            length. Row 0 is set by `advance`; the others are computed here when they are needed.
        longest: int32[capacity], the longest match of each node in tokens; [0] is set.
        pool, frontier: see `hf_specplug.kernels`.
        limit: rows per node at most: longer matches first, of each the most frequent tokens.
        ends: int32[n], receives the number of rows up to and including each node's.
        out: int32[n * limit, MATCH_COLUMNS], receives the rows.

    Returns:
        The number of rows.
    """
    found = np.empty((SAMPLE, 2), np.int32)
    rows = 0
    for i in range(frontier.shape[0]):
        node = frontier[i]
        length = longest[0]
        if node != 0:
            low[node, 1:] = -1
            low[node, 0], high[node, 0] = low[0, 0], high[0, 0]
            length = min(longest[pool[node, PARENT]] + 1, LONGEST_MATCH)
        longest[node] = 0
        begin = rows
        total = 0
        while length >= SHORTEST_MATCH and total < _FEW and rows - begin < limit:
            _interval(tokens, suffixes, low, high, pool, node, length)
            size = high[node, length] - low[node, length]
            if size > total:
                if total == 0:
                    longest[node] = length
                distinct = _continuations(
                    tokens, suffixes, vocab, low[node, length], high[node, length], length, found
                )
                looked = min(size, SAMPLE)
                rows = _take(found, distinct, node, length, looked, begin, begin + limit, rows, out)
                total = size
            length -= 1
        if longest[node] == 0:  # its children may still match their own token
            longest[node] = 1
        ends[i] = rows
    return rows


@njit
def _take(found, distinct, node, length, total, begin, end, rows, out):
    """Write the most frequent continuations that the node does not have yet; the new row count."""
    while rows < end:
        best = -1
        for i in range(distinct):
            if found[i, 1] > 0 and (best < 0 or found[i, 1] > found[best, 1]):
                best = i
        if best < 0:
            break
        known = False
        for row in range(begin, rows):
            if out[row, MATCH_TOKEN] == found[best, 0]:
                known = True
        if not known:
            out[rows, MATCH_NODE] = node
            out[rows, MATCH_TOKEN] = found[best, 0]
            out[rows, MATCH_LENGTH] = length
            out[rows, MATCH_COUNT] = found[best, 1]
            out[rows, MATCH_TOTAL] = total
            rows += 1
        found[best, 1] = 0
    return rows


@njit
def combine(raw, ends, frontier, limit, out):
    """Merge the rows of several shards: counts at matches of the same length add up.

    Args:
        raw, ends: int32[shards, rows, MATCH_COLUMNS], int32[shards, n], as `expand` wrote them.
        frontier: see `hf_specplug.kernels`.
        limit: proposals per node at most.
        out: int32[n * limit, 3], receives the proposals.

    Returns:
        The number of rows.
    """
    rows = 0
    totals = np.zeros(LONGEST_MATCH + 1, np.int32)
    for i in range(frontier.shape[0]):
        begin = rows
        longest = 0
        totals[:] = 0
        for shard in range(raw.shape[0]):
            last = -1
            for row in range(ends[shard, i - 1] if i > 0 else 0, ends[shard, i]):
                length = raw[shard, row, MATCH_LENGTH]
                if length != last:
                    totals[length] += raw[shard, row, MATCH_TOTAL]
                last = length
                longest = max(longest, length)
        for length in range(longest, SHORTEST_MATCH - 1, -1):
            if totals[length] == 0:
                continue
            first = rows
            for shard in range(raw.shape[0]):
                for row in range(ends[shard, i - 1] if i > 0 else 0, ends[shard, i]):
                    if raw[shard, row, MATCH_LENGTH] != length:
                        continue
                    place = begin
                    while (
                        place < rows and out[place, PROPOSAL_TOKEN] != raw[shard, row, MATCH_TOKEN]
                    ):
                        place += 1
                    if place == rows and rows - begin < limit:
                        rows = propose(out, rows, frontier[i], raw[shard, row, MATCH_TOKEN], 0)
                    if first <= place < rows:  # the bucket's column counts until the loop is done
                        out[place, PROPOSAL_BUCKET] += raw[shard, row, MATCH_COUNT]
            for place in range(first, rows):
                count = out[place, PROPOSAL_BUCKET]
                evidence = _evidence(length, count, totals[length], length == longest)
                out[place, PROPOSAL_BUCKET] = evidence
    return rows


@njit
def _evidence(length, count, total, longest):
    """The evidence bucket: by match length and share, at the longest match also by occurrences."""
    row = bucket(length, _LENGTH_EDGES)
    column = bucket(count / total, _SHARE_EDGES)
    if longest:
        return row * LONGEST_BUCKETS + column * SUPPORTS + bucket(total, COUNT_EDGES)
    return LENGTHS * LONGEST_BUCKETS + row * SHORTER_BUCKETS + column
