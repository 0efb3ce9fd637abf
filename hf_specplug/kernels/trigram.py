"""What follows a pair of tokens: in tri-gram indices of a corpus, and in the text so far.

A shard is a tuple of the arrays of `hf_specplug.datastore.kinds.trigram.TrigramIndex`, in the order
of its `array_names`. No value read from it is trusted: indices are kept within its arrays, so that
a damaged file gives wrong proposals, but no crash. What was learned from texts is a table of
`hf_specplug.kernels.successors`, whose weights are decayed counts.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels import successors
from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import PROB_BUCKETS, PROB_EDGES, bucket
from hf_specplug.kernels.placeholders import read_only
from hf_specplug.kernels.proposals import propose
from hf_specplug.kernels.tree import PARENT, TOKEN

PROPOSED = 12
"""Proposals per node at most."""

ROW = 12
"""Successors of a pair that are read from one shard."""

MAX_COUNTED = 64
"""Distinct successors of a pair in all shards; further ones are skipped."""

SUCCESSORS = 8
"""Successors of a pair in the table."""

CANDIDATES = MAX_COUNTED + SUCCESSORS

CORPUS = 0.5
"""Weight of the corpus's distribution, in occurrences in the text."""

_TOTAL_EDGES = (1, 4, 16)  # occurrences of the pair in the corpus
_REPEATED = 1.5  # least weight in the table of a token that followed more than once recently
SUPPORTS = len(_TOTAL_EDGES) + 1
STRENGTHS = 3  # weight of the token in the table: none, less than _REPEATED, more
BUCKETS = STRENGTHS * SUPPORTS * PROB_BUCKETS

_NO_NUMBERS, _NO_TOKENS = read_only(np.uint32), read_only(np.uint16)
NO_SHARD = (
    (_NO_NUMBERS, _NO_TOKENS, _NO_NUMBERS, _NO_NUMBERS, _NO_TOKENS, _NO_TOKENS),
    0,
)
"""A shard without pairs, and its vocabulary size."""

_EMPTY_GRAM, _longer = successors.EMPTY_GRAM, successors.longer
_claim, _count, _find = successors.claim, successors.count, successors.find


@njit
def _key(first, second):
    """The key of a pair in the table."""
    return _longer(_longer(np.uint64(_EMPTY_GRAM), second), first)


@njit
def learn(keys, stamps, visits, ids, weights, clock, tail, tokens, decay):
    """Count what follows each pair of tokens of a text.

    Args:
        keys, stamps, visits, ids, weights: the table, changed in place.
        clock: the last stamp given.
        tail: int32[2], the two tokens before, updated in place; -1 = none.
        tokens: int32[n]; pairs with a negative id, and what follows them, are not learned.
        decay: the weight of an occurrence is multiplied by it whenever the pair occurs again.

    Returns:
        The last stamp given now.
    """
    for token in tokens:
        if tail[0] >= 0 and tail[1] >= 0 and token >= 0:
            clock += 1
            row = _claim(keys, stamps, visits, ids, weights, _key(tail[0], tail[1]), clock)
            _count(visits, ids, weights, row, token, decay)
        tail[0] = tail[1]
        tail[1] = token
    return clock


@njit
def last_pairs(before, root, pool, frontier, pairs):
    """Find the last two tokens of each frontier node's path.

    Args:
        before, root: the last two tokens of the text; -1 = none.
        pool, frontier: see `hf_specplug.kernels`.
        pairs: int32[n, 2], receives them.
    """
    for i in range(frontier.shape[0]):
        node = frontier[i]
        if node == 0:
            pairs[i, 0], pairs[i, 1] = before, root
        else:
            parent = pool[node, PARENT]
            pairs[i, 0] = root if parent == 0 else pool[parent, TOKEN]
            pairs[i, 1] = pool[node, TOKEN]


@njit
def add(shard, vocab, first, second, known, total, tokens, counts):
    """Add the successors of a pair in one shard to those in other shards.

    Args:
        shard, vocab: see above; token ids are in [0, vocab).
        first, second: the pair.
        known, total: the number of known successors, and of occurrences of the pair.
        tokens, counts: int32[MAX_COUNTED], int64[MAX_COUNTED], the known successors.

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
        elif known < MAX_COUNTED and 0 <= token < vocab:
            tokens[known], counts[known] = token, count
            known += 1
    return known, total + max(occurred, np.int64(totals[low]))


@njit
def gather(shard, vocab, pairs, known, totals, tokens, counts):
    """`add` for the pairs int32[n, 2], with one row of the other arguments for each."""
    for i in range(pairs.shape[0]):
        known[i], totals[i] = add(
            shard, vocab, pairs[i, 0], pairs[i, 1], known[i], totals[i], tokens[i], counts[i]
        )


@njit
def distribution(keys, ids, weights, first, second, known, total, tokens, counts, probs, live):
    """The distribution of the next token after a pair, from corpus and text together.

        P(c) = (CORPUS * count_c / total + w_c) / (CORPUS + sum of w)

    w are the weights of the pair's row in the table. The corpus part is 0 if the corpus lacks the
    pair, so that the probabilities add up to at most 1.

    Args:
        keys, ids, weights: arrays of the table.
        first, second: the pair.
        known, total, tokens, counts: as `add` left them; `tokens` int32[CANDIDATES] receives those
            of the table too.
        probs, live: float64[CANDIDATES], receive P and w of each token.

    Returns:
        The number of tokens.
    """
    for place in range(known):
        probs[place] = CORPUS * counts[place] / max(total, 1)
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
            tokens[place], probs[place] = token, 0.0
            known += 1
        probs[place] += weight
        live[place] = weight
        whole += weight
    for place in range(known):
        probs[place] /= whole
    return known


@njit
def expand(keys, ids, weights, pairs, known, totals, tokens, counts, frontier, limit, out):
    """Propose to every frontier node the likeliest successors of its last two tokens.

    Args:
        keys, ids, weights: arrays of the table.
        pairs: as `last_pairs` left them.
        known, totals, tokens, counts: as `gather` left them.
        frontier: see `hf_specplug.kernels`.
        limit: proposals per node at most.
        out: int32[n * limit, 3], receives the proposals, the likeliest of a node first.

    Returns:
        The number of rows. The evidence bucket tells the token's weight in the table, the pair's
        occurrences in the corpus, and the probability, in this order.
    """
    probs, live = np.empty(CANDIDATES), np.empty(CANDIDATES)
    rows = 0
    for i in range(frontier.shape[0]):
        size = distribution(
            keys,
            ids,
            weights,
            pairs[i, 0],
            pairs[i, 1],
            known[i],
            totals[i],
            tokens[i],
            counts[i],
            probs,
            live,
        )
        support = bucket(totals[i], _TOTAL_EDGES)
        for _ in range(min(size, limit)):
            best = np.argmax(probs[:size])
            strength = 0 if live[best] <= 0.0 else (1 if live[best] < _REPEATED else 2)
            column = bucket(probs[best], PROB_EDGES)
            evidence = (strength * SUPPORTS + support) * PROB_BUCKETS + column
            rows = propose(out, rows, frontier[i], tokens[i, best], evidence)
            probs[best] = -1.0
    return rows
