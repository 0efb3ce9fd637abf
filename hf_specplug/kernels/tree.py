"""Growing and reading draft trees.

A search keeps its nodes in three arrays, `pool` int32[capacity, 7], `probs` float32[capacity, 4]
and `evidence` int16[capacity, D] for D drafters (see `kernels.mixer`). Node 0 is the last accepted
token, with path probability 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hf_specplug.kernels._njit import njit

TOKEN, PARENT, DEPTH, FIRST, NEXT, SOURCES, ROUND = range(7)
COLUMNS = 7
PROB, PATH, RAW, NOISE = range(4)
PROB_COLUMNS = 4

AHEAD = 0.1
"""A round expands the likeliest node and those that are at least this fraction as likely."""

BAD_NODE, BAD_TOKEN, BAD_BUCKET, FULL = -1, -2, -3, -4


@njit
def insert(pool, probs, evidence, size, rows, drafter, begin, end, vocab, round_number):
    """Add one drafter's candidates to the pool; return the new size, or why they were refused.

    Args:
        rows: int32[n, 3], (search node, token, evidence bucket); nodes of round `round_number`.
        drafter: its column in `evidence`; its bit in SOURCES is 1 << drafter.
        begin, end: its buckets 0, 1, ... are [begin, end) in the table of all drafters' buckets.

    A token that several drafters name under one node is one node. Rows are checked before any is
    used.
    """
    for i in range(rows.shape[0]):
        if rows[i, 0] < 0 or rows[i, 0] >= size or pool[rows[i, 0], ROUND] != round_number:
            return BAD_NODE
        if rows[i, 1] < 0 or rows[i, 1] >= vocab:
            return BAD_TOKEN
        if rows[i, 2] < 0 or rows[i, 2] >= end - begin:
            return BAD_BUCKET
    for i in range(rows.shape[0]):
        parent = rows[i, 0]
        token = rows[i, 1]
        node = pool[parent, FIRST]
        while node != 0 and pool[node, TOKEN] != token:
            node = pool[node, NEXT]
        if node == 0:
            if size == pool.shape[0]:
                return size
            node = size
            size += 1
            pool[node, TOKEN] = token
            pool[node, PARENT] = parent
            pool[node, DEPTH] = pool[parent, DEPTH] + 1
            pool[node, FIRST] = 0
            pool[node, NEXT] = pool[parent, FIRST]
            pool[node, SOURCES] = 0
            pool[node, ROUND] = 0
            pool[parent, FIRST] = node
            for column in range(PROB_COLUMNS):
                probs[node, column] = 0.0
            for column in range(evidence.shape[1]):
                evidence[node, column] = 0
        pool[node, SOURCES] |= 1 << drafter
        evidence[node, drafter] = begin + rows[i, 2]
    return size


@njit
def best(pool, probs, size, limit, depth, round_number, chosen, frontier, top):
    """Choose the `limit` nodes of highest path probability, and those of them to expand next.

    Args:
        depth: nodes at this depth are not expanded.
        round_number: expanded nodes are stamped with this round; 0 means not expanded yet.
        chosen: int32[limit], receives the chosen nodes, parents before children.
        frontier: int32[limit], receives the nodes to expand: chosen ones that could still have
            children in the tree.
        top: float32[limit], to work in: the highest path probabilities, descending.

    Returns:
        (number chosen, number to expand)
    """
    kept = 0
    for node in range(1, size):
        path = probs[node, PATH]
        if kept == limit and path <= top[limit - 1]:
            continue
        place = kept if kept < limit else limit - 1
        kept = place + 1
        while place > 0 and top[place - 1] < path:
            top[place] = top[place - 1]
            place -= 1
        top[place] = path
    full = kept == limit
    least = top[limit - 1] if full else np.float32(0.0)
    spare = 0  # how many of those that are exactly the least there is room for
    while full and spare < limit and top[limit - 1 - spare] == least:
        spare += 1
    number = 0
    waiting = 0
    likeliest = np.float32(0.0)  # of those to be expanded
    for node in range(1, size):
        path = probs[node, PATH]
        if path < least or (full and path == least and spare <= 0):
            continue
        if full and path == least:
            spare -= 1
        chosen[number] = node
        number += 1
        reaches = path > least or not full  # a child is never likelier than its parent
        if reaches and pool[node, ROUND] == 0 and pool[node, DEPTH] < depth:
            frontier[waiting] = node
            waiting += 1
            likeliest = path if path > likeliest else likeliest
    ready = 0
    for i in range(waiting):
        node = frontier[i]
        if probs[node, PATH] >= AHEAD * likeliest:
            pool[node, ROUND] = round_number
            frontier[ready] = node
            ready += 1
    return number, ready


_LEAST = 0.01  # of the probability that none of a node's children is picked


@njit
def draw(pool, probs, nodes, generator):
    """Draw children instead of ranking them: PATH becomes exp of a perturbed log-probability.

    Top-down Gumbel-top-k (Kool et al. 2019, stochastic beam search): of each node, the children of
    highest PATH are a sample without replacement from their PROB, and no child has more than its
    parent. What is not named takes part, but is never drawn.

    Args:
        nodes: int32[n], whose children are to be drawn; those of their parents have been.
        generator: of numpy.
    """
    for node in nodes:
        path = 1.0
        above = node
        while above != 0:
            path *= probs[above, PROB]
            above = pool[above, PARENT]
        unnamed = 1.0
        highest = -np.inf
        child = pool[node, FIRST]
        while child != 0:
            unnamed -= probs[child, PROB]
            gumbel = -math.log(-math.log1p(-generator.random()) + 1e-300)
            probs[child, PATH] = math.log(path * probs[child, PROB] + 1e-30) + gumbel
            highest = max(highest, probs[child, PATH])
            child = pool[child, NEXT]
        gumbel = -math.log(-math.log1p(-generator.random()) + 1e-300)
        highest = max(highest, math.log(path * max(unnamed, _LEAST)) + gumbel)
        bound = 1.0 if node == 0 else probs[node, PATH]
        child = pool[node, FIRST]
        while child != 0:  # as if the highest were the parent's
            lower = 1.0 / bound - math.exp(-highest) + math.exp(-probs[child, PATH])
            probs[child, PATH] = min(1.0 / lower, bound)
            child = pool[child, NEXT]


def ancestors(parents: Any) -> Any:
    """Who may see whom: bool[n + 1, n + 1] over the root (0) and the n nodes of a tree.

    Row i is True at i, at every ancestor of node i, and at the root. `parents` int32[n], -1 = root.

    Example:
        two children of the root: parents = [-1, -1] gives [[1, 0, 0], [1, 1, 0], [1, 0, 1]].
    """
    seen = np.zeros((len(parents) + 1, len(parents) + 1), np.bool_)
    _inherit(parents, seen)
    return seen


@njit
def _inherit(parents, seen):
    """A node sees itself and what its parent sees."""
    seen[0, 0] = True
    for i in range(1, seen.shape[0]):
        above = parents[i - 1] + 1
        for j in range(above + 1):
            seen[i, j] = seen[above, j]
        seen[i, i] = True
