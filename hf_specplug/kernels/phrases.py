"""A phrase automaton: which phrases the text is in the middle of, and how they continue.

A trie with failure links (Aho and Corasick 1975, "Efficient String Matching: An Aid to
Bibliographic Search"). A state is a node: the longest prefix of a phrase that is a suffix of the
text. Failure links lead to the next shorter such prefix, so that one token takes a constant number
of steps on average.

Layout: `nodes` int32[size, STATE_COLUMNS], one row per prefix, node 0 the empty one; siblings are
consecutive rows, the most frequent first. `table`: see `kernels.trie`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.proposals import is_proposed, propose
from hf_specplug.kernels.tree import PARENT, TOKEN
from hf_specplug.kernels.trie import TRIE_PARENT, TRIE_TOKEN, rehash, slot_of

STATE_FAIL, STATE_FIRST, STATE_END, STATE_EVIDENCE = range(2, 6)
"""Columns of `nodes` after TRIE_TOKEN and TRIE_PARENT: the failure link; the first child; the row
after the last child; the evidence bucket."""
STATE_COLUMNS = 6

MAX_PHRASE = 64
"""Tokens of a phrase at most; the rest of a longer one is ignored."""

PROPOSED = 8
"""Proposals per node at most."""

ENOUGH = 4
"""Proposals of a node; with fewer, shorter states propose too."""

LENGTH_EDGES = (2, 3, 4, 5, 7, 10, 16)  # tokens of the prefix that a path ends with
SHARE_EDGES = (0.02, 0.1, 0.25, 0.5, 0.8)  # of a continuation in all of that prefix
LENGTHS, SHARES = len(LENGTH_EDGES) + 1, len(SHARE_EDGES) + 1
SHORTER = LENGTHS * SHARES  # the first bucket of states that are not the longest one
BUCKETS = 2 * SHORTER


@njit
def insert(tokens, offsets, counts, vocab, nodes, weights, depths, table, size):
    """Add phrases to a trie that has room for them.

    Args:
        tokens, offsets, counts: phrases as in stores; any values are safe.
        vocab: a phrase ends before an id of `vocab` or more.
        nodes: int32[capacity, STATE_COLUMNS], receives token and parent.
        weights: int64[capacity], receives the sum of the counts of the phrases through each node.
        depths: uint8[capacity], receives the number of tokens from the root.
        table: see `kernels.trie`.
        size: the number of nodes.

    Returns:
        The new number of nodes.
    """
    n = np.int64(tokens.shape[0])
    for i in range(counts.shape[0]):
        begin = np.int64(offsets[i])
        end = min(np.int64(offsets[i + 1]), begin + MAX_PHRASE, n)
        node = 0
        for place in range(begin, end):
            token = np.int64(tokens[place])
            if token >= vocab:
                break
            slot = slot_of(table, nodes, node, token)
            child = table[slot]
            if child == 0:
                child = size
                size += 1
                table[slot] = child
                nodes[child, TRIE_TOKEN] = token
                nodes[child, TRIE_PARENT] = node
                depths[child] = place - begin + 1
            weights[child] += np.int64(counts[i])
            node = child
    return size


@njit
def step(nodes, table, state, token):
    """The state after one more token."""
    while True:
        child = table[slot_of(table, nodes, state, token)]
        if child != 0 or state == 0:
            return child
        state = nodes[state, STATE_FAIL]


@njit
def advance(nodes, table, state, tokens):
    """The state after more tokens, int32[n]; a negative one leads to the empty state."""
    for token in tokens:
        state = step(nodes, table, state, token)
    return state


@njit
def link(nodes, table, order):
    """Set the failure links of the nodes `order` int32[n], which come by increasing depth."""
    for node in order:
        parent = nodes[node, TRIE_PARENT]
        fail = 0
        if parent != 0:
            fail = step(nodes, table, nodes[parent, STATE_FAIL], nodes[node, TRIE_TOKEN])
        if nodes[fail, STATE_FIRST] == nodes[fail, STATE_END]:  # it has no children
            fail = nodes[fail, STATE_FAIL]
        nodes[node, STATE_FAIL] = fail


@njit
def expand(nodes, table, root, states, pool, frontier, limit, out):
    """Propose to every frontier node the continuations of the phrases that its path is in.

    Args:
        root: the state of the text.
        states: int32[capacity], the state of each search node; written for the frontier.
        pool, frontier: see `hf_specplug.kernels`.
        limit: proposals per node at most: longer states first, of each the most frequent children.
        out: int32[n * limit, 3], receives the proposals.

    Returns:
        The number of rows.
    """
    rows = 0
    for node in frontier:
        state = root
        if node != 0:
            state = step(nodes, table, states[pool[node, PARENT]], pool[node, TOKEN])
        states[node] = state
        begin = rows
        shift = 0
        while state != 0 and rows - begin < ENOUGH:
            for child in range(nodes[state, STATE_FIRST], nodes[state, STATE_END]):
                if rows - begin >= limit:
                    break
                token = nodes[child, TRIE_TOKEN]
                if not is_proposed(out, begin, rows, token):
                    evidence = nodes[child, STATE_EVIDENCE] + shift
                    rows = propose(out, rows, node, token, evidence)
            if rows > begin:
                shift = SHORTER
            state = nodes[state, STATE_FAIL]
    return rows


Part = tuple[NDArray[np.integer], NDArray[np.uint32], NDArray[np.uint32], int]
"""Phrases as in stores: (tokens, offsets, counts, vocabulary size)."""


def automaton(parts: list[Part]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Build the automaton of the phrases of all parts; counts of equal phrases add up.

    Returns:
        (nodes, table)

    Example:
        >>> tokens, offsets = np.array([7, 8, 9], np.uint16), np.array([0, 3], np.uint32)
        >>> nodes, table = automaton([(tokens, offsets, np.ones(1, np.uint32), 10)])
        >>> advance(nodes, table, 0, np.array([5, 7, 8], np.int32))
        2
    """
    most = 1
    for _, offsets, _, _ in parts:
        most += int(np.diff(offsets.astype(np.int64)).clip(0, MAX_PHRASE).sum())
    made = np.zeros((most, STATE_COLUMNS), np.int32)
    weights = np.zeros(most, np.int64)
    depths = np.zeros(most, np.uint8)
    table = np.zeros(1 << (2 * most - 1).bit_length(), np.int32)
    size = 1
    for tokens, offsets, counts, vocab in parts:
        size = insert(tokens, offsets, counts, vocab, made, weights, depths, table, size)
    parents = made[1:size, TRIE_PARENT]
    order = np.lexsort((-weights[1:size], parents)) + 1
    place = np.zeros(size, np.int32)  # from the old order to the new one
    place[order] = np.arange(1, size)
    nodes = np.zeros((size, STATE_COLUMNS), np.int32)
    nodes[0, TRIE_TOKEN] = -1
    nodes[1:, TRIE_TOKEN] = made[order, TRIE_TOKEN]
    nodes[1:, TRIE_PARENT] = place[made[order, TRIE_PARENT]]
    sizes = np.bincount(parents, minlength=size)
    ends = 1 + np.cumsum(sizes)
    nodes[place, STATE_END] = ends
    nodes[place, STATE_FIRST] = ends - sizes
    totals = np.bincount(parents, weights[1:size], minlength=size)
    shares = weights[order] / np.maximum(totals[made[order, TRIE_PARENT]], 1)
    rows = np.searchsorted(LENGTH_EDGES, depths[made[order, TRIE_PARENT]], side="right")
    columns = np.searchsorted(SHARE_EDGES, shares, side="right")
    nodes[1:, STATE_EVIDENCE] = rows * SHARES + columns
    table[:] = 0
    rehash(nodes, table, size)
    link(nodes, table, 1 + np.argsort(depths[order], kind="stable"))
    return nodes, table
