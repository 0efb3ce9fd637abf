"""ADED's search: prefixes that rollouts from a tri-gram distribution visit most often.

Nodes are `nodes` int32[capacity, COLUMNS] and `numbers` float64[capacity, 2]; node 0 is the end of
the text, and the children of a node stand side by side.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels import trigram
from hf_specplug.kernels._njit import njit

TOKEN, PARENT, DEPTH, FIRST, COUNT, VISITS, SCORE, PLACE = range(8)
COLUMNS = 8
PROB, VALUE = range(2)

ITERATIONS, LENGTH, PREFIXES = 150, 4, 24  # of the paper's code, like the next two
_C1, _C2 = 32.0, 8.0

CAPACITY = 1 + ITERATIONS * trigram.CANDIDATES + PREFIXES

_add, _distribution = trigram.add, trigram.distribution
_CANDIDATES, _MOST = trigram.CANDIDATES, trigram.MOST


@njit
def _lookup(shards, table, first, second, tokens, counts, chances, live):
    """What follows a pair: see `kernels.trigram.distribution`."""
    keys, ids, weights = table
    known, total = 0, np.int64(0)
    for arrays, vocab in shards:
        known, total = _add(arrays, vocab, first, second, known, total, tokens, counts)
    return _distribution(
        keys, ids, weights, first, second, known, total, tokens, counts, chances, live
    )


@njit
def _pair(nodes, node, before, root):
    """The last two tokens at a node."""
    if node == 0:
        return before, root
    parent = nodes[node, PARENT]
    return root if parent == 0 else nodes[parent, TOKEN], nodes[node, TOKEN]


@njit
def _append(nodes, numbers, size, parent, token, probs):
    nodes[size, :] = 0
    nodes[size, TOKEN], nodes[size, PARENT] = token, parent
    nodes[size, DEPTH] = nodes[parent, DEPTH] + 1
    numbers[size, PROB], numbers[size, VALUE] = probs, 0.0


@njit
def _best_child(nodes, numbers, node):
    """The child that the search goes to: known to be good, or likely and seldom tried."""
    tried = nodes[node, VISITS]
    drive = (_C1 + np.log((tried + _C2 + 1.0) / _C2)) * np.sqrt(tried)
    best, highest = -1, -1.0
    for child in range(nodes[node, FIRST], nodes[node, FIRST] + nodes[node, COUNT]):
        visits = nodes[child, VISITS]
        value = drive * numbers[child, PROB] / (1.0 + visits)
        if visits > 0:
            value += numbers[child, VALUE] / visits
        if value > highest:
            best, highest = child, value
    return best


@njit
def _drawn(chances, found, rng):
    """A random place, by probability."""
    left = rng.random() * chances[:found].sum()
    for place in range(found - 1):
        left -= chances[place]
        if left < 0.0:
            return place
    return found - 1


@njit
def search(shards, table, before, root, rng, nodes, numbers):
    """Grow the search tree from the last two tokens of the text.

    Args:
        shards: a tuple of (arrays, vocab), as `TrigramDrafter.shards` lists them; one at least.
        table: (keys, ids, weights) of what the text taught.
        rng: a numpy Generator.
        nodes, numbers: receive the tree; `CAPACITY` rows.

    Returns:
        How many nodes there are.
    """
    tokens, counts = np.empty(_CANDIDATES, np.int32), np.empty(_MOST, np.int64)
    chances, live = np.empty(_CANDIDATES), np.empty(_CANDIDATES)
    nodes[0, :] = 0
    numbers[0, :] = 0.0
    size = 1
    for _ in range(ITERATIONS):
        node = 0
        value = 1.0
        while nodes[node, COUNT] > 0:
            node = _best_child(nodes, numbers, node)
            value += numbers[node, PROB]
        first, second = _pair(nodes, node, before, root)
        for depth in range(nodes[node, DEPTH], LENGTH):
            found = _lookup(shards, table, first, second, tokens, counts, chances, live)
            if found == 0:
                break
            if depth == nodes[node, DEPTH]:
                nodes[node, FIRST], nodes[node, COUNT] = size, found
                for place in range(found):
                    _append(nodes, numbers, size, node, tokens[place], chances[place])
                    size += 1
            place = _drawn(chances, found, rng)
            value += chances[place]
            first, second = second, tokens[place]
        while True:
            nodes[node, VISITS] += 1
            numbers[node, VALUE] += value
            if node == 0:
                break
            node = nodes[node, PARENT]
    return size


@njit
def _take(nodes, column, order, taken):
    """The first of the nodes `order` not taken that has the highest number in a column, or -1."""
    best = -1
    for i in range(order.shape[0]):
        if not taken[i] and (best < 0 or nodes[order[i], column] > nodes[order[best], column]):
            best = i
    if best >= 0:
        taken[best] = True
    return best


@njit
def _extension(shards, table, before, root, nodes, numbers, size, node):
    """The likeliest child of a node, added if need be: (child, new size); child -1 if none."""
    if nodes[node, COUNT] > 0:
        first = nodes[node, FIRST]
        return first + np.argmax(numbers[first : first + nodes[node, COUNT], PROB]), size
    tokens, counts = np.empty(_CANDIDATES, np.int32), np.empty(_MOST, np.int64)
    chances, live = np.empty(_CANDIDATES), np.empty(_CANDIDATES)
    first, second = _pair(nodes, node, before, root)
    found = _lookup(shards, table, first, second, tokens, counts, chances, live)
    if found == 0:
        return -1, size
    place = np.argmax(chances[:found])
    _append(nodes, numbers, size, node, tokens[place], chances[place])
    return size, size + 1


@njit
def choose(shards, table, before, root, nodes, numbers, size, limit, depth, out, probs):
    """The draft: the most visited prefixes, each with one more token, cut to `limit` nodes.

    What more of them share is kept first (`cut_to_choices` of REST).

    Args:
        out: int32[limit, 2], receives (token, parent in `out` or -1).
        probs: float32[limit], receives their probabilities.

    Returns:
        How many nodes there are.
    """
    visited = 1 + np.flatnonzero(nodes[1:size, VISITS] > 0)
    taken = np.zeros(len(visited), np.bool_)
    order = np.empty(2 * PREFIXES, np.int64)
    extensions = np.empty(PREFIXES, np.int64)
    kept = extended = 0
    while kept < min(PREFIXES, len(visited)):
        node = order[kept] = visited[_take(nodes, VISITS, visited, taken)]
        kept += 1
        child, size = _extension(shards, table, before, root, nodes, numbers, size, node)
        end = node if child < 0 else child
        if child >= 0:
            extensions[extended] = child
            extended += 1
        while end != 0:
            nodes[end, SCORE] += 1
            end = nodes[end, PARENT]
    for child in extensions[:extended]:
        if not (order[:kept] == child).any():
            order[kept] = child
            kept += 1
    taken = nodes[order[:kept], DEPTH] > depth
    number = 0
    while number < limit:
        place = _take(nodes, SCORE, order[:kept], taken)
        if place < 0:
            break
        node = order[place]
        above = nodes[node, PARENT]
        out[number, 0] = nodes[node, TOKEN]
        out[number, 1] = nodes[above, PLACE] if above != 0 else -1
        probs[number] = numbers[node, PROB]
        nodes[node, PLACE] = number
        number += 1
    return number
