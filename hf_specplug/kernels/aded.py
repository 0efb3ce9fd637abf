"""ADED's draft maker: a tree search by random rollouts, whose most visited paths are the draft.

After Liu et al. 2024, arXiv 2407.12021: a Monte Carlo tree search over a tri-gram distribution,
with the constants of the authors' code. The distribution is a corpus's, to which a constant is
added for what the text confirms.

The search tree is `nodes` int32[capacity, ROLLOUT_COLUMNS] and `numbers` float64[capacity, 2].
Node 0 is the end of the text; the children of a node are consecutive rows.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels import successors, trigram
from hf_specplug.kernels._njit import njit

(
    ROLLOUT_TOKEN,
    ROLLOUT_PARENT,
    ROLLOUT_DEPTH,
    ROLLOUT_FIRST,
    ROLLOUT_COUNT,
    ROLLOUT_VISITS,
    ROLLOUT_SCORE,
    ROLLOUT_PLACE,
) = range(8)
"""Columns of `nodes`: the token; the parent; tokens from node 0; the first child; the number of
children; rollouts through it; chosen paths through it; its place in the draft."""
ROLLOUT_COLUMNS = 8

ROLLOUT_PROB, ROLLOUT_VALUE = range(2)
"""Columns of `numbers`: P(token | parent); the sum of the values of the rollouts through it."""

DRAFT_TOKEN, DRAFT_PARENT = range(2)
"""Columns of the draft: the token; the index of the parent, -1 = the root."""

ITERATIONS, LENGTH, PREFIXES = 150, 4, 24
"""Rollouts; tokens of a rollout at most; paths of the draft, before each gets one more token."""

_C1, _C2 = 32.0, 8.0  # of the exploration term

ADDED, MOST = 0.04, 3.0
"""Added to P(token | pair) each time that the text confirms it; the most that P can become."""

CAPACITY = 1 + ITERATIONS * trigram.CANDIDATES + PREFIXES

_add, _find, _longer = trigram.add, successors.find, successors.longer
_EMPTY_GRAM = successors.EMPTY_GRAM
_CANDIDATES, _MAX_COUNTED = trigram.CANDIDATES, trigram.MAX_COUNTED


@njit
def raised(shards, table, first, second, tokens, counts, probs):
    """P(token | pair) of a corpus, plus `ADDED` for each time that the text confirmed it.

    Args:
        shards: see `search`.
        table: (keys, ids, weights) of a table of `kernels.successors`; weights count.
        first, second: the pair; -1 = none.
        tokens, counts, probs: int32[CANDIDATES], int64[MAX_COUNTED], float64[CANDIDATES]; the first
            and the last receive the tokens and their probabilities, which add up to any sum.

    Returns:
        The number of tokens.
    """
    keys, ids, weights = table
    known, total = 0, np.int64(0)
    for arrays, vocab in shards:
        known, total = _add(arrays, vocab, first, second, known, total, tokens, counts)
    for place in range(known):
        probs[place] = counts[place] / max(total, 1)
    pair = _longer(_longer(np.uint64(_EMPTY_GRAM), second), first)
    row = _find(keys, pair) if first >= 0 and second >= 0 else -1
    corpus = known
    for i in range(ids.shape[1] if row >= 0 else 0):
        token = ids[row, i]
        if token < 0:
            break
        place = 0
        while place < corpus and tokens[place] != token:
            place += 1
        if place == corpus:
            place = known
            tokens[place], probs[place] = token, 0.0
            known += 1
        probs[place] = min(MOST, probs[place] + ADDED * weights[row, i])
    return known


@njit
def _pair(nodes, node, before, root):
    """The last two tokens of a node's path."""
    if node == 0:
        return before, root
    parent = nodes[node, ROLLOUT_PARENT]
    return root if parent == 0 else nodes[parent, ROLLOUT_TOKEN], nodes[node, ROLLOUT_TOKEN]


@njit
def _append(nodes, numbers, size, parent, token, prob):
    nodes[size, :] = 0
    nodes[size, ROLLOUT_TOKEN], nodes[size, ROLLOUT_PARENT] = token, parent
    nodes[size, ROLLOUT_DEPTH] = nodes[parent, ROLLOUT_DEPTH] + 1
    numbers[size, ROLLOUT_PROB], numbers[size, ROLLOUT_VALUE] = prob, 0.0


@njit
def _best_child(nodes, numbers, node):
    """The child to descend to (PUCT): of high mean value, or likely and rarely visited."""
    tried = nodes[node, ROLLOUT_VISITS]
    drive = (_C1 + np.log((tried + _C2 + 1.0) / _C2)) * np.sqrt(tried)
    best, highest = -1, -1.0
    for child in range(
        nodes[node, ROLLOUT_FIRST], nodes[node, ROLLOUT_FIRST] + nodes[node, ROLLOUT_COUNT]
    ):
        visits = nodes[child, ROLLOUT_VISITS]
        value = drive * numbers[child, ROLLOUT_PROB] / (1.0 + visits)
        if visits > 0:
            value += numbers[child, ROLLOUT_VALUE] / visits
        if value > highest:
            best, highest = child, value
    return best


@njit
def _drawn(probs, found, rng):
    """A random place, drawn by probability."""
    left = rng.random() * probs[:found].sum()
    for place in range(found - 1):
        left -= probs[place]
        if left < 0.0:
            return place
    return found - 1


@njit
def search(shards, table, before, root, rng, nodes, numbers):
    """Grow the search tree from the last two tokens of the text.

    Args:
        shards: a tuple of (arrays, vocab), as `TrigramDrafter.shards` lists them; at least one.
        table: see `raised`.
        before, root: the last two tokens of the text; -1 = none.
        rng: a numpy Generator.
        nodes, numbers: receive the tree; `CAPACITY` rows.

    Returns:
        The number of nodes.
    """
    tokens, counts = np.empty(_CANDIDATES, np.int32), np.empty(_MAX_COUNTED, np.int64)
    probs = np.empty(_CANDIDATES)
    nodes[0, :] = 0
    numbers[0, :] = 0.0
    size = 1
    for _ in range(ITERATIONS):
        node = 0
        value = 1.0
        while nodes[node, ROLLOUT_COUNT] > 0:
            node = _best_child(nodes, numbers, node)
            value += numbers[node, ROLLOUT_PROB]
        first, second = _pair(nodes, node, before, root)
        for depth in range(nodes[node, ROLLOUT_DEPTH], LENGTH):
            found = raised(shards, table, first, second, tokens, counts, probs)
            if found == 0:
                break
            if depth == nodes[node, ROLLOUT_DEPTH]:
                nodes[node, ROLLOUT_FIRST], nodes[node, ROLLOUT_COUNT] = size, found
                for place in range(found):
                    _append(nodes, numbers, size, node, tokens[place], probs[place])
                    size += 1
            place = _drawn(probs, found, rng)
            value += probs[place]
            first, second = second, tokens[place]
        while True:
            nodes[node, ROLLOUT_VISITS] += 1
            numbers[node, ROLLOUT_VALUE] += value
            if node == 0:
                break
            node = nodes[node, ROLLOUT_PARENT]
    return size


@njit
def _take(nodes, column, order, taken):
    """Take the first node of `order` that is highest in a column; its index, -1 if none is left."""
    best = -1
    for i in range(order.shape[0]):
        if not taken[i] and (best < 0 or nodes[order[i], column] > nodes[order[best], column]):
            best = i
    if best >= 0:
        taken[best] = True
    return best


@njit
def _extension(shards, table, before, root, nodes, numbers, size, node):
    """The likeliest child of a node, added if it is new: (child or -1, new number of nodes)."""
    if nodes[node, ROLLOUT_COUNT] > 0:
        first = nodes[node, ROLLOUT_FIRST]
        return first + np.argmax(
            numbers[first : first + nodes[node, ROLLOUT_COUNT], ROLLOUT_PROB]
        ), size
    tokens, counts = np.empty(_CANDIDATES, np.int32), np.empty(_MAX_COUNTED, np.int64)
    probs = np.empty(_CANDIDATES)
    first, second = _pair(nodes, node, before, root)
    found = raised(shards, table, first, second, tokens, counts, probs)
    if found == 0:
        return -1, size
    place = np.argmax(probs[:found])
    _append(nodes, numbers, size, node, tokens[place], probs[place])
    return size, size + 1


@njit
def choose(shards, table, before, root, nodes, numbers, size, limit, depth, out, probs):
    """Choose the draft: the most visited paths, each with one more token, cut to `limit` nodes.

    Nodes that more of these paths share are kept first (as by `cut_to_choices` of REST's code).

    Args:
        shards, table, before, root: as for `search`.
        nodes, numbers, size: the search tree; receives new nodes.
        limit, depth: nodes of the draft and tokens from the root, at most.
        out: int32[limit, 2], receives the draft.
        probs: float32[limit], receives P(token | parent).

    Returns:
        The number of nodes in `out`.
    """
    visited = 1 + np.flatnonzero(nodes[1:size, ROLLOUT_VISITS] > 0)
    taken = np.zeros(len(visited), np.bool_)
    order = np.empty(2 * PREFIXES, np.int64)
    extensions = np.empty(PREFIXES, np.int64)
    kept = extended = 0
    while kept < min(PREFIXES, len(visited)):
        node = order[kept] = visited[_take(nodes, ROLLOUT_VISITS, visited, taken)]
        kept += 1
        child, size = _extension(shards, table, before, root, nodes, numbers, size, node)
        end = node if child < 0 else child
        if child >= 0:
            extensions[extended] = child
            extended += 1
        while end != 0:
            nodes[end, ROLLOUT_SCORE] += 1
            end = nodes[end, ROLLOUT_PARENT]
    for child in extensions[:extended]:
        if not (order[:kept] == child).any():
            order[kept] = child
            kept += 1
    taken = nodes[order[:kept], ROLLOUT_DEPTH] > depth
    number = 0
    while number < limit:
        place = _take(nodes, ROLLOUT_SCORE, order[:kept], taken)
        if place < 0:
            break
        node = order[place]
        above = nodes[node, ROLLOUT_PARENT]
        out[number, DRAFT_TOKEN] = nodes[node, ROLLOUT_TOKEN]
        out[number, DRAFT_PARENT] = nodes[above, ROLLOUT_PLACE] if above != 0 else -1
        probs[number] = numbers[node, ROLLOUT_PROB]
        nodes[node, ROLLOUT_PLACE] = number
        number += 1
    return number
