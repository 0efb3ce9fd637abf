"""What follows a pair of tokens: in tri-gram indices, and in the text so far.

What is read from an index is never trusted: it is kept within its arrays, so that a damaged file
can give wrong guesses, but no crash. A shard is a tuple of the arrays of
`hf_specplug.datastore.kinds.trigram.TrigramIndex` in the order of its `array_names`.
What the text taught is kept in a table of `hf_specplug.kernels.successors`, whose `probs` are here
the decayed numbers of times that a token followed.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels import successors
from hf_specplug.kernels._njit import njit

ROW = 12  # successors of a context that are read
MOST = 64  # distinct successors of several shards; later ones are passed over
WIDTH = 8  # successors in a row of the table
CANDIDATES = MOST + WIDTH

CORPUS = 0.5
"""What the corpus says is worth so many occurrences in the text, also if it says nothing."""

_PROBS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
PROB_STEPS = len(_PROBS) + 1
SUPPORTS = 4  # of the context in the corpus: none, 1 to 3, 4 to 15, more
STRENGTHS = 3  # of the token in the text: none, once or long ago, more
BUCKETS = STRENGTHS * SUPPORTS * PROB_STEPS
_OFTEN = 1.5

_EMPTY_GRAM, _longer = successors.EMPTY_GRAM, successors.longer
_claim, _decayed, _find = successors.claim, successors.decayed, successors.find


@njit
def _key(first, second):
    """Of a pair, in the table."""
    return _longer(_longer(np.uint64(_EMPTY_GRAM), second), first)


@njit
def learn(keys, stamps, visits, ids, weights, clock, tail, tokens, decay):
    """Count what follows each pair of a text; what is new weighs 1, and `decay` per later turn.

    Args:
        keys, stamps, visits, ids, weights: the table.
        clock: the last stamp given.
        tail: int32[2], the two tokens before, moved on in place; -1: none.
        tokens: int32[n]; what follows or precedes a negative id is not learned.

    Returns:
        The last stamp given now.
    """
    for token in tokens:
        if tail[0] >= 0 and tail[1] >= 0 and token >= 0:
            clock += 1
            row = _claim(keys, stamps, visits, ids, weights, _key(tail[0], tail[1]), clock)
            _decayed(ids, weights, visits, row, token, decay)
        tail[0] = tail[1]
        tail[1] = token
    return clock


@njit
def last_pairs(before, root, pool, frontier, pairs):
    """The last two tokens at each frontier node.

    Args:
        before, root: the last two tokens of the text; -1: none.
        pool: int32[capacity, k], the search nodes: token in column 0, parent in column 1.
        pairs: int32[n, 2], receives them.
    """
    for i in range(frontier.shape[0]):
        node = frontier[i]
        if node == 0:
            pairs[i, 0], pairs[i, 1] = before, root
        else:
            parent = pool[node, 1]
            pairs[i, 0] = root if parent == 0 else pool[parent, 0]
            pairs[i, 1] = pool[node, 0]


@njit
def add(shard, vocab, first, second, known, total, tokens, counts):
    """Add what followed a pair in one shard to what followed it in others.

    Args:
        known, total: how many tokens are known already, and how often the pair occurred.
        tokens, counts: int32[MOST], int64[MOST], the known ones.

    Returns:
        The new (known, total).
    """
    firsts, seconds, totals, offsets, following, numbers = shard
    if first < 0 or first + 1 >= firsts.shape[0] or second < 0:
        return known, total
    low = np.int64(firsts[first])
    last = min(np.int64(firsts[first + 1]), np.int64(seconds.shape[0]))
    high = last
    while low < high:
        middle = (low + high) // 2
        if seconds[middle] < second:
            low = middle + 1
        else:
            high = middle
    if low >= last or seconds[low] != second:
        return known, total
    begin = np.int64(offsets[low])
    end = min(np.int64(offsets[low + 1]), np.int64(following.shape[0]), begin + ROW)
    occurred = np.int64(0)
    for i in range(begin, end):
        token, count = np.int32(following[i]), np.int64(numbers[i])
        occurred += count
        place = 0
        while place < known and tokens[place] != token:
            place += 1
        if place < known:
            counts[place] += count
        elif known < MOST and 0 <= token < vocab:
            tokens[known], counts[known] = token, count
            known += 1
    return known, total + max(occurred, np.int64(totals[low]))


@njit
def gather(shard, vocab, pairs, known, totals, tokens, counts):
    """`add` for many pairs: int32[n, 2] and, of each, known, total, tokens and counts."""
    for i in range(pairs.shape[0]):
        known[i], totals[i] = add(
            shard, vocab, pairs[i, 0], pairs[i, 1], known[i], totals[i], tokens[i], counts[i]
        )


@njit
def distribution(keys, ids, weights, first, second, known, total, tokens, counts, chances, live):
    """What follows a pair: corpus and text together.

    P(c) = (CORPUS * count_c / total + w_c) / (CORPUS + sum of w), where w are the weights in the
    table; the corpus part is 0 where the corpus lacks the pair. So it adds up to 1 at most.

    Args:
        keys, ids, weights: the table.
        known, total, tokens, counts: as `add` left them; tokens int32[CANDIDATES] gets those of
            the table, too.
        chances, live: float64[CANDIDATES], receive P and w of each token.

    Returns:
        How many tokens there are.
    """
    for place in range(known):
        chances[place] = CORPUS * counts[place] / max(total, 1)
        live[place] = 0.0
    whole = CORPUS
    row = _find(keys, _key(first, second)) if first >= 0 and second >= 0 else -1
    corpus = known
    for i in range(ids.shape[1] if row >= 0 else 0):
        token, weight = ids[row, i], weights[row, i]
        if token < 0:
            break
        place = 0
        while place < corpus and tokens[place] != token:
            place += 1
        if place == corpus:
            place = known
            tokens[place], chances[place] = token, 0.0
            known += 1
        chances[place] += weight
        live[place] = weight
        whole += weight
    for place in range(known):
        chances[place] /= whole
    return known


@njit
def expand(keys, ids, weights, pairs, known, totals, tokens, counts, frontier, limit, out):
    """Name what is likeliest to follow each frontier node.

    Args:
        pairs, known, totals, tokens, counts: as `gather` left them.
        limit: rows per node at most.
        out: int32[n * limit, 3], receives (search node, token, evidence bucket), the likeliest
            first.

    Returns:
        The number of rows. The bucket tells the weight in the text, how often the pair occurred
        in the corpus, and the probability, in this order.
    """
    chances, live = np.empty(CANDIDATES), np.empty(CANDIDATES)
    rows = 0
    for i in range(frontier.shape[0]):
        found = distribution(
            keys,
            ids,
            weights,
            pairs[i, 0],
            pairs[i, 1],
            known[i],
            totals[i],
            tokens[i],
            counts[i],
            chances,
            live,
        )
        total = totals[i]
        support = 0 if total < 1 else (1 if total <= 3 else (2 if total <= 15 else 3))
        for _ in range(min(found, limit)):
            best = np.argmax(chances[:found])
            strength = 0 if live[best] <= 0.0 else (1 if live[best] < _OFTEN else 2)
            column = 0
            for step in _PROBS:
                if chances[best] >= step:
                    column += 1
            out[rows, 0] = frontier[i]
            out[rows, 1] = tokens[i, best]
            out[rows, 2] = (strength * SUPPORTS + support) * PROB_STEPS + column
            rows += 1
            chances[best] = -1.0
    return rows
