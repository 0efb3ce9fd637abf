"""A suffix-count trie over a growing text: every n-gram up to a maximum order, with its count.

Node 0 is the empty gram. Each other node is one n-gram; its children are the tokens seen after it,
the latest first, so the first child is the most recent continuation. `LINK` leads to the gram
without its first token, so that the longest suffix which has been seen is followed, token by
token, without a search from scratch (the structure behind PPM text compression). One token costs
`order` steps to add, however long the text.

Layout: `nodes` int32[capacity, 8], one row per gram; `table` int32[power of two], an open-addressed
hash from (parent, token) to a node, 0 = free; `active` int32[order + 1], at [d] the node of the
last d tokens.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit

TOKEN, PARENT, LINK, FIRST, NEXT, PREV, COUNT, TOTAL = range(8)
COLUMNS = 8

SHARES = (0.1, 0.25, 0.5, 0.8)
LENGTHS = 8
LONGEST_BUCKETS = 11
SHORTER_BUCKETS = 8
BUCKETS = LENGTHS * (LONGEST_BUCKETS + SHORTER_BUCKETS)


@njit
def slot_of(table, nodes, parent, token):
    """The slot that holds the child, or the free one where it would go."""
    mask = table.shape[0] - 1
    key = np.uint64(parent) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(token + 1)
    key = (key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    slot = np.int64((key >> np.uint64(32)) & np.uint64(mask))
    while table[slot] != 0:
        node = table[slot]
        if nodes[node, PARENT] == parent and nodes[node, TOKEN] == token:
            break
        slot = (slot + 1) & mask
    return slot


@njit
def extend(nodes, table, active, size, tokens):
    """Add `tokens` (int32[n]) to the text and return the new number of nodes (or -1: no room).

    `active` is updated in place. The caller makes room beforehand: `n * order` rows at most.
    """
    order = active.shape[0] - 1
    if size + tokens.shape[0] * order > nodes.shape[0]:
        return -1
    for token in tokens:
        link = 0  # the node of the last d tokens, this one included
        parent = 0
        for depth in range(order):
            following = active[depth + 1]
            slot = slot_of(table, nodes, np.int64(parent), np.int64(token))
            node = table[slot]
            if node == 0:
                node = size
                size += 1
                table[slot] = node
                nodes[node, TOKEN] = token
                nodes[node, PARENT] = parent
                nodes[node, LINK] = link
                nodes[node, FIRST] = 0
                nodes[node, COUNT] = 0
                nodes[node, TOTAL] = 0
            elif nodes[parent, FIRST] != node:  # unlink; it goes to the front below
                before = nodes[node, PREV]
                after = nodes[node, NEXT]
                nodes[before, NEXT] = after
                if after != 0:
                    nodes[after, PREV] = before
            first = nodes[parent, FIRST]
            if first != node:
                nodes[node, NEXT] = first
                nodes[node, PREV] = 0
                if first != 0:
                    nodes[first, PREV] = node
                nodes[parent, FIRST] = node
            nodes[node, COUNT] += 1
            nodes[parent, TOTAL] += 1
            active[depth + 1] = node
            link = node
            parent = following
            if parent == 0:  # the text is still shorter than the order
                break
    return size


@njit
def rehash(nodes, table, size):
    """Fill an empty, larger `table` with all nodes."""
    for node in range(1, size):
        parent, token = np.int64(nodes[node, PARENT]), np.int64(nodes[node, TOKEN])
        table[slot_of(table, nodes, parent, token)] = node


@njit
def longest_suffix(nodes, active):
    """The longest suffix of the text that has been continued before, as a node (0: none)."""
    for depth in range(active.shape[0] - 1, 0, -1):
        node = active[depth]
        if node != 0 and nodes[node, TOTAL] > 0:
            return node
    return 0


@njit
def expand(nodes, table, root, matches, pool, frontier, limit, out):
    """Continue every path of a frontier by what followed its longest suffix in the text.

    Args:
        root: match of the path of length zero (see `longest_suffix`).
        matches: int32[capacity], the match of each search node; filled in for the frontier.
        pool: int32[capacity, k], the search nodes: token in column 0, parent in column 1.
        frontier: int32[n], the nodes to expand; their parents were expanded before.
        limit: rows per node at most; longer matches come first, in each the latest continuation.
        out: int32[n * limit, 3], receives (search node, token, evidence bucket).

    Returns:
        The number of rows. A token is named once per node, at the longest match that it follows.
    """
    rows = 0
    for node in frontier:
        match = root
        if node != 0:
            token = pool[node, 0]
            match = matches[pool[node, 1]]
            while True:
                child = table[slot_of(table, nodes, np.int64(match), np.int64(token))]
                if child != 0 or match == 0:
                    match = child
                    break
                match = nodes[match, LINK]
            while match != 0 and nodes[match, TOTAL] == 0:
                match = nodes[match, LINK]
        matches[node] = match

        length = 0
        level = match
        while level != 0:
            length += 1
            level = nodes[level, LINK]
        begin = rows
        level = match
        while level != 0 and rows - begin < limit:
            child = nodes[level, FIRST]
            for _ in range(2 * limit):
                if child == 0 or rows - begin >= limit:
                    break
                token = nodes[child, TOKEN]
                known = False
                for row in range(begin, rows):
                    if out[row, 1] == token:
                        known = True
                        break
                if not known and token >= 0:
                    out[rows, 0] = node
                    out[rows, 1] = token
                    out[rows, 2] = _bucket(
                        length,
                        nodes[child, COUNT],
                        nodes[level, TOTAL],
                        child == nodes[level, FIRST],
                        level == match,
                    )
                    rows += 1
                child = nodes[child, NEXT]
            level = nodes[level, LINK]
            length -= 1
    return rows


@njit
def _bucket(length, count, total, latest, longest):
    """Evidence as a small id: at the longest match by length and share, else by length and share.

    Where (nearly) all occurrences went on alike it also counts how many they are, elsewhere whether
    this one is the latest.
    """
    if length <= 4:
        row = length - 1
    elif length <= 6:
        row = 4
    elif length <= 9:
        row = 5
    elif length <= 15:
        row = 6
    else:
        row = 7
    share = count / total
    if longest:
        if share >= SHARES[3]:
            column = 8 + (0 if count == 1 else (1 if count <= 3 else 2))
        else:
            column = 1 if latest else 0
            for step in SHARES[:3]:
                if share >= step:
                    column += 2
        return row * LONGEST_BUCKETS + column
    column = 1 if latest else 0
    for step in SHARES[:3]:
        if share >= step:
            column += 2
    return LENGTHS * LONGEST_BUCKETS + row * SHORTER_BUCKETS + column
