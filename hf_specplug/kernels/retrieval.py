"""Matches in a suffix array: found, narrowed token by token, and continued.

What is read is never trusted: a position outside the text counts as its end, so that a damaged file
can give wrong guesses, but no crash.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit


@njit
def token_at(tokens, position):
    """The token at a position, -1 outside the text."""
    if position < 0 or position >= tokens.shape[0]:
        return np.int64(-1)
    return np.int64(tokens[position])


@njit
def narrow(tokens, suffixes, low, high, offset, token):
    """The part (low, high) of an interval of suffixes whose token at `offset` is `token`.

    All suffixes of the interval agree on their first `offset` tokens.
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


LONGEST, SHORTEST = 16, 2
"""Tokens of a match at most, and at least."""

CAP = 64
"""Occurrences that are looked at; of more, as many are taken at even distances."""

NODE, TOKEN, LENGTH, COUNT, TOTAL = range(5)
COLUMNS = 5

_FEW = 4  # occurrences; with fewer, a shorter match is asked, too


@njit
def advance(tokens, suffixes, low, high, emitted):
    """Add tokens to a text whose matches are kept, by length; return the longest match.

    Args:
        low, high: int32[LONGEST + 1], at [l] the interval of the text's last l tokens.
        emitted: int32[n]; -1 stands for "no token", which nothing matches.
    """
    for token in emitted:
        for length in range(LONGEST, 0, -1):
            low[length], high[length] = 0, 0
            if token >= 0 and high[length - 1] > low[length - 1]:
                low[length], high[length] = narrow(
                    tokens, suffixes, low[length - 1], high[length - 1], length - 1, token
                )
    longest = LONGEST
    while longest > 0 and high[longest] <= low[longest]:
        longest -= 1
    return longest


@njit
def _interval(tokens, suffixes, low, high, pool, node, length):
    """Make sure that the interval of a search node's last `length` tokens is known."""
    climbed = np.empty(LONGEST + 1, np.int32)
    steps = 0
    while low[node, length - steps] < 0:
        climbed[steps] = node
        node = pool[node, 1]
        steps += 1
    while steps > 0:
        parent, node = node, climbed[steps - 1]
        steps -= 1
        level = length - steps
        begin, end = low[parent, level - 1], high[parent, level - 1]
        low[node, level], high[node, level] = 0, 0
        if end > begin:
            low[node, level], high[node, level] = narrow(
                tokens, suffixes, begin, end, level - 1, pool[node, 0]
            )


@njit
def _continuations(tokens, suffixes, vocab, low, high, length, found):
    """Fill `found` int32[CAP, 2] with (token, count) of what follows a match; their number."""
    size = np.int64(high) - low
    looked = min(size, CAP)
    distinct = 0
    for i in range(looked):
        place = low + (i * size + size // 2) // looked if size > CAP else low + i
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
    """Continue every path of a frontier by what follows its longest suffix in the store.

    Args:
        tokens, suffixes: of one shard; any integers.
        vocab: ids from here on separate documents.
        low, high: int32[capacity, LONGEST + 1], the intervals of each search node by match length;
            row 0 is known. Others are found from their parents' when they are needed.
        longest: int32[capacity], the longest match of each node; that of node 0 is known.
        pool: int32[capacity, k], the search nodes: token in column 0, parent in column 1.
        frontier: int32[n], the nodes to expand; their parents were expanded before.
        limit: rows per node at most; the most frequent of the longest match come first.
        ends: int32[n], receives the number of rows up to and with each node.
        out: int32[n * limit, COLUMNS], receives the rows.
    """
    found = np.empty((CAP, 2), np.int32)
    rows = 0
    for i in range(frontier.shape[0]):
        node = frontier[i]
        length = longest[0]
        if node != 0:
            low[node, 1:] = -1
            low[node, 0], high[node, 0] = low[0, 0], high[0, 0]
            length = min(longest[pool[node, 1]] + 1, LONGEST)
        longest[node] = 0
        begin = rows
        total = 0
        while length >= SHORTEST and total < _FEW and rows - begin < limit:
            _interval(tokens, suffixes, low, high, pool, node, length)
            size = high[node, length] - low[node, length]
            if size > total:
                if total == 0:
                    longest[node] = length
                distinct = _continuations(
                    tokens, suffixes, vocab, low[node, length], high[node, length], length, found
                )
                looked = min(size, CAP)
                rows = _take(found, distinct, node, length, looked, begin, begin + limit, rows, out)
                total = size
            length -= 1
        if longest[node] == 0:  # a child may match a single token, if nothing else
            longest[node] = 1
        ends[i] = rows
    return rows


@njit
def _take(found, distinct, node, length, total, begin, end, rows, out):
    """Write the most frequent continuations that the node does not have yet."""
    while rows < end:
        best = -1
        for i in range(distinct):
            if found[i, 1] > 0 and (best < 0 or found[i, 1] > found[best, 1]):
                best = i
        if best < 0:
            break
        known = False
        for row in range(begin, rows):
            if out[row, TOKEN] == found[best, 0]:
                known = True
        if not known:
            out[rows, NODE] = node
            out[rows, TOKEN] = found[best, 0]
            out[rows, LENGTH] = length
            out[rows, COUNT] = found[best, 1]
            out[rows, TOTAL] = total
            rows += 1
        found[best, 1] = 0
    return rows


LENGTHS = 8
SHARES = (0.02, 0.1, 0.25, 0.5, 0.8)
SUPPORTS = 4
LONGEST_BUCKETS = (len(SHARES) + 1) * SUPPORTS
SHORTER_BUCKETS = len(SHARES) + 1
BUCKETS = LENGTHS * (LONGEST_BUCKETS + SHORTER_BUCKETS)


@njit
def combine(raw, ends, frontier, limit, out):
    """Join the rows of several shards: counts of matches of the same length add up.

    Args:
        raw: int32[shards, rows, COLUMNS], and ends int32[shards, n], as `expand` wrote them.
        frontier: int32[n].
        limit: rows per node at most.
        out: int32[n * limit, 3], receives (search node, token, evidence bucket).

    Returns:
        The number of rows.
    """
    rows = 0
    totals = np.zeros(LONGEST + 1, np.int32)
    for i in range(frontier.shape[0]):
        begin = rows
        longest = 0
        totals[:] = 0
        for shard in range(raw.shape[0]):
            last = -1
            for row in range(ends[shard, i - 1] if i > 0 else 0, ends[shard, i]):
                length = raw[shard, row, LENGTH]
                if length != last:
                    totals[length] += raw[shard, row, TOTAL]
                last = length
                longest = max(longest, length)
        for length in range(longest, SHORTEST - 1, -1):
            if totals[length] == 0:
                continue
            first = rows
            for shard in range(raw.shape[0]):
                for row in range(ends[shard, i - 1] if i > 0 else 0, ends[shard, i]):
                    if raw[shard, row, LENGTH] != length:
                        continue
                    place = begin
                    while place < rows and out[place, 1] != raw[shard, row, TOKEN]:
                        place += 1
                    if place == rows and rows - begin < limit:
                        out[rows, 0] = frontier[i]
                        out[rows, 1] = raw[shard, row, TOKEN]
                        out[rows, 2] = 0
                        rows += 1
                    if first <= place < rows:
                        out[place, 2] += raw[shard, row, COUNT]
            for place in range(first, rows):
                out[place, 2] = _bucket(length, out[place, 2], totals[length], length == longest)
    return rows


@njit
def _bucket(length, count, total, longest):
    """Evidence as a small id: by length and share, at the longest match also by support."""
    if length <= 4:
        row = length - 2
    elif length <= 6:
        row = 3
    elif length <= 9:
        row = 4
    elif length <= 12:
        row = 5
    elif length <= 15:
        row = 6
    else:
        row = 7
    share = count / total
    column = 0
    for step in SHARES:
        if share >= step:
            column += 1
    if not longest:
        return LENGTHS * LONGEST_BUCKETS + row * SHORTER_BUCKETS + column
    support = 0 if total == 1 else (1 if total <= 3 else (2 if total <= 15 else 3))
    return row * LONGEST_BUCKETS + column * SUPPORTS + support
