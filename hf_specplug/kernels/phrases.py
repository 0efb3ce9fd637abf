"""Phrases as an automaton: which of them does the text go through, and how do they go on?

A trie with failure links (Aho and Corasick, "Efficient string matching", 1975). A state is a node:
the longest beginning of a phrase that the text ends with. `FAIL` leads to the next shorter one
that a phrase goes on from, so that a token costs a constant number of steps on average.

Layout: `nodes` int32[size, 6], one row per node, node 0 the empty beginning; the children of a node
are the rows from `FIRST` to before `END`, the most frequent first. `table` int32[power of two] is
the hash from (parent, token) to a node that `kernels.ngram` has, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.ngram import PARENT, TOKEN, rehash, slot_of

FAIL, FIRST, END, EVIDENCE = range(2, 6)
COLUMNS = 6

LONGEST = 64
"""Tokens of a phrase at most; what is longer is not looked at."""

ENOUGH = 4
"""Children of a path; with fewer, a shorter state is asked, too."""

DEPTHS = (2, 3, 4, 5, 7, 10, 16)
SHARES = (0.02, 0.1, 0.25, 0.5, 0.8)
LENGTHS, COLUMNS_OF_LENGTH = len(DEPTHS) + 1, len(SHARES) + 1
SHORTER = LENGTHS * COLUMNS_OF_LENGTH  # the bucket where those of shorter states begin
BUCKETS = 2 * SHORTER


@njit
def insert(tokens, offsets, counts, vocab, nodes, weights, depths, table, size):
    """Add phrases to a trie that has room for them; return its new size.

    Args:
        tokens, offsets, counts: as stores keep phrases; any numbers.
        vocab: a phrase ends at an id from here on.
        nodes: int32[capacity, COLUMNS], of which token and parent are set.
        weights: int64[capacity], receives the counts of the phrases through each node.
        depths: uint8[capacity], receives the tokens from the root.
    """
    n = np.int64(tokens.shape[0])
    for i in range(counts.shape[0]):
        begin = np.int64(offsets[i])
        end = min(np.int64(offsets[i + 1]), begin + LONGEST, n)
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
                nodes[child, TOKEN] = token
                nodes[child, PARENT] = node
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
        state = nodes[state, FAIL]


@njit
def advance(nodes, table, state, tokens):
    """The state after some more tokens, int32[n]; no phrase holds negative ones."""
    for token in tokens:
        state = step(nodes, table, state, token)
    return state


@njit
def link(nodes, table, order):
    """Set the failure links of nodes in an order that has the shallow ones first."""
    for node in order:
        parent = nodes[node, PARENT]
        fail = 0
        if parent != 0:
            fail = step(nodes, table, nodes[parent, FAIL], nodes[node, TOKEN])
        if nodes[fail, FIRST] == nodes[fail, END]:  # nothing follows it
            fail = nodes[fail, FAIL]
        nodes[node, FAIL] = fail


@njit
def expand(nodes, table, root, states, pool, frontier, limit, out):
    """Continue every path of a frontier by the phrases that it is in.

    Args:
        root: the state of the text.
        states: int32[capacity], the state of each search node; filled in for the frontier.
        pool: int32[capacity, k], the search nodes: token in column 0, parent in column 1.
        frontier: int32[n], the nodes to expand; their parents were expanded before.
        limit: rows per node at most; longer states come first, in each the most frequent child.
        out: int32[n * limit, 3], receives (search node, token, evidence bucket).

    Returns:
        The number of rows.
    """
    rows = 0
    for node in frontier:
        state = root
        if node != 0:
            state = step(nodes, table, states[pool[node, 1]], pool[node, 0])
        states[node] = state
        begin = rows
        shift = 0
        while state != 0 and rows - begin < ENOUGH:
            for child in range(nodes[state, FIRST], nodes[state, END]):
                if rows - begin >= limit:
                    break
                token = nodes[child, TOKEN]
                known = False
                for row in range(begin, rows):
                    if out[row, 1] == token:
                        known = True
                        break
                if not known:
                    out[rows, 0] = node
                    out[rows, 1] = token
                    out[rows, 2] = nodes[child, EVIDENCE] + shift
                    rows += 1
            if rows > begin:
                shift = SHORTER
            state = nodes[state, FAIL]
    return rows


Part = tuple[NDArray[np.integer], NDArray[np.uint32], NDArray[np.uint32], int]
"""(tokens, offsets, counts, vocabulary) of some phrases."""


def automaton(parts: list[Part]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(nodes, table) of the phrases of all parts together; counts of equal ones add up.

    Example:
        >>> tokens, offsets = np.array([7, 8, 9], np.uint16), np.array([0, 3], np.uint32)
        >>> nodes, table = automaton([(tokens, offsets, np.ones(1, np.uint32), 10)])
        >>> advance(nodes, table, 0, np.array([5, 7, 8], np.int32))
        2
    """
    most = 1 + sum(
        int(np.diff(offsets.astype(np.int64)).clip(0, LONGEST).sum()) for _, offsets, _, _ in parts
    )
    made = np.zeros((most, COLUMNS), np.int32)
    weights = np.zeros(most, np.int64)
    depths = np.zeros(most, np.uint8)
    table = np.zeros(1 << (2 * most - 1).bit_length(), np.int32)
    size = 1
    for tokens, offsets, counts, vocab in parts:
        size = insert(tokens, offsets, counts, vocab, made, weights, depths, table, size)
    parents = made[1:size, PARENT]
    order = np.lexsort((-weights[1:size], parents)) + 1
    place = np.zeros(size, np.int32)  # in the new order, by the old one
    place[order] = np.arange(1, size)
    nodes = np.zeros((size, COLUMNS), np.int32)
    nodes[0, TOKEN] = -1
    nodes[1:, TOKEN] = made[order, TOKEN]
    nodes[1:, PARENT] = place[made[order, PARENT]]
    sizes = np.bincount(parents, minlength=size)
    ends = 1 + np.cumsum(sizes)
    nodes[place, END] = ends
    nodes[place, FIRST] = ends - sizes
    totals = np.bincount(parents, weights[1:size], minlength=size)
    shares = weights[order] / np.maximum(totals[made[order, PARENT]], 1)
    rows = np.searchsorted(DEPTHS, depths[made[order, PARENT]], side="right")
    columns = np.searchsorted(SHARES, shares, side="right")
    nodes[1:, EVIDENCE] = rows * COLUMNS_OF_LENGTH + columns
    table[:] = 0
    rehash(nodes, table, size)
    link(nodes, table, 1 + np.argsort(depths[order], kind="stable"))
    return nodes, table
