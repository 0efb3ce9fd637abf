"""Continuations of a match in a suffix array, merged in a trie and counted.

REST's draft (He et al. 2023, arXiv 2311.08252, section 3.2): the trie of what follows the
occurrences of the text's last tokens; the weight of a node is the frequency of its prefix.

The trie is `nodes` int32[capacity, CONTINUATION_COLUMNS] with a table as in `kernels.trie`; node 0
is the end of the text. No value read from a store is trusted.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.retrieval import narrow, token_at
from hf_specplug.kernels.trie import TRIE_PARENT, TRIE_TOKEN, slot_of

CONTINUATION_DEPTH, CONTINUATION_COUNT = range(2, 4)
"""Columns of `nodes` after TRIE_TOKEN and TRIE_PARENT: tokens from node 0; its frequency."""
CONTINUATION_COLUMNS = 4

_TOKEN, _PARENT = TRIE_TOKEN, TRIE_PARENT


@njit
def occurrences(tokens, suffixes, query):
    """The interval [low, high) of the suffixes that begin with `query` int32[n].

    Args:
        tokens, suffixes: a text and its suffix array.
    """
    low, high = 0, suffixes.shape[0]
    for offset in range(query.shape[0]):
        if low >= high or query[offset] < 0:
            return 0, 0
        low, high = narrow(tokens, suffixes, low, high, offset, query[offset])
    return low, high


@njit
def merge(tokens, suffixes, vocab, low, high, skip, longest, nodes, table, size):
    """Add what follows some suffixes to the trie, and count each prefix.

    Args:
        tokens, suffixes: a text and its suffix array.
        vocab: an id of `vocab` or more separates documents, and ends a continuation.
        low, high: the suffixes are `suffixes[low:high]`.
        skip: their first so many tokens are the match.
        longest: tokens of a continuation at most.
        nodes, table: the trie, with room for `longest` nodes per suffix.
        size: the number of nodes.

    Returns:
        The new number of nodes.
    """
    for place in range(low, high):
        node = np.int64(0)
        for depth in range(1, longest + 1):
            token = token_at(tokens, np.int64(suffixes[place]) + skip + depth - 1)
            if token < 0 or token >= vocab:
                break
            slot = slot_of(table, nodes, node, token)
            child = np.int64(table[slot])
            if child == 0:
                child = size
                size += 1
                table[slot] = child
                nodes[child, _TOKEN], nodes[child, _PARENT] = token, node
                nodes[child, CONTINUATION_DEPTH], nodes[child, CONTINUATION_COUNT] = depth, 0
            nodes[child, CONTINUATION_COUNT] += 1
            node = child
    return size


@njit
def _before(nodes, one, other):
    """Whether a node is drafted before another: more frequent, then shallower, then older."""
    if nodes[one, CONTINUATION_COUNT] != nodes[other, CONTINUATION_COUNT]:
        return nodes[one, CONTINUATION_COUNT] > nodes[other, CONTINUATION_COUNT]
    if nodes[one, CONTINUATION_DEPTH] != nodes[other, CONTINUATION_DEPTH]:
        return nodes[one, CONTINUATION_DEPTH] < nodes[other, CONTINUATION_DEPTH]
    return one < other


@njit
def frequent(nodes, size, depth, chosen):
    """Choose the most frequent nodes; of equal ones the shallower, then the older one.

    A node is never chosen before its parent, which is at least as frequent.

    Args:
        nodes, size: the trie, and its number of nodes.
        depth: tokens from node 0 at most.
        chosen: int32[limit], receives them, in this order.

    Returns:
        The number of chosen nodes.
    """
    limit = chosen.shape[0]
    kept = 0
    for node in range(1, size):
        if nodes[node, CONTINUATION_DEPTH] > depth:
            continue
        if kept == limit and (limit == 0 or not _before(nodes, node, chosen[limit - 1])):
            continue
        place = kept if kept < limit else limit - 1
        kept = place + 1
        while place > 0 and _before(nodes, node, chosen[place - 1]):
            chosen[place] = chosen[place - 1]
            place -= 1
        chosen[place] = node
    return kept
