"""Suffix arrays over tokens: how one is built, and how matches in it are found and narrowed.

Built by induced sorting (SA-IS; Nong, Zhang and Chan, "Two efficient algorithms for linear time
suffix array construction", 2011): linear in the text, whatever it holds.

Queries never trust what they read: a position outside the text counts as its end, so that a damaged
file can give wrong guesses, but no crash.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_specplug.kernels._njit import njit


@njit
def classify(text):
    """(smaller bool[n], starts int32[m]): is suffix i smaller than i + 1; where such runs begin."""
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
        order: int32[m], the text positions of `starts`, sorted as far as they are.
        heads, ends: int32[alphabet], where each token's larger and smaller suffixes begin.
        suffixes: int32[n], overwritten.
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
    """(heads, ends) int32[alphabet]: where each token's suffixes begin, and its smaller ones."""
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
    """(sorted positions, names in text order, how many names): equal runs get equal names.

    A run goes from one start to the next one, both included.
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
        # the token at the next start belongs to the run; the end of the text is like no other
        if same and (one == n or other == n or text[one] != text[other]):
            same = False
        if not same:
            name += 1
        names[number[ordered[i]]] = name
    return ordered, names, name + 1


def suffix_array(text: NDArray[np.int32], alphabet: int) -> NDArray[np.int32]:
    """The start positions of all suffixes of `text` int32[n], smallest first, as int32[n].

    Args:
        alphabet: all tokens are in [0, alphabet).

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
def _token(tokens, position):
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
        if _token(tokens, np.int64(suffixes[middle]) + offset) < token:
            begin = middle + 1
        else:
            end = middle
    low = begin
    end = high
    while begin < end:
        middle = (begin + end) // 2
        if _token(tokens, np.int64(suffixes[middle]) + offset) <= token:
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
        token = _token(tokens, np.int64(suffixes[place]) + length)
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


@njit
def is_sorted(tokens, suffixes):
    """Whether `suffixes` holds every position once, in the order of the suffixes there."""
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
