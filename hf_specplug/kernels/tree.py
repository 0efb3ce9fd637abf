"""The search pool: adding proposals, choosing the nodes of the draft tree, drawing children.

A search keeps its nodes in three arrays. Node 0 is the root, the last accepted token.

    pool      int32[capacity, COLUMNS]         token and links of each node, see below
    probs     float32[capacity, PROB_COLUMNS]  its probabilities
    evidence  int32[capacity, D]               at [node, d] the bucket in which drafter d proposed
                                               the node, in the table of all drafters' buckets;
                                               0 = it did not (see `kernels.mixer`)

Three arguments, not one NamedTuple of arrays: numba takes 0.9 us per call longer to look at a
NamedTuple (1.7 us against 0.8 us), as much as most of these kernels run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.proposals import PROPOSAL_BUCKET, PROPOSAL_NODE, PROPOSAL_TOKEN

TOKEN, PARENT, DEPTH, FIRST, NEXT, SOURCES, ROUND = range(7)
"""Columns of `pool`: the token; the parent's id; the distance from the root in tokens; the first
child and the next sibling (0 = none); the drafters that proposed it, as bits; the round in which
it was expanded (0 = not yet)."""
COLUMNS = 7

PROB, PATH, RAW, NOISE = range(4)
"""Columns of `probs`: P(accepted | parent accepted); P(it and all its ancestors are accepted); PROB
before recalibration; how the known sampling noise favours the token (0 = unknown)."""
PROB_COLUMNS = 4

FRONTIER_SHARE = 0.1
"""A round expands the likeliest node and those that are at least this fraction as likely."""

BAD_NODE, BAD_TOKEN, BAD_BUCKET = -1, -2, -3
"""Reasons to refuse a drafter's rows."""


@njit
def insert(pool, probs, evidence, size, rows, drafter, begin, end, suppressed, vocab, round_number):
    """Add one drafter's proposals to the pool.

    A token that several drafters propose under one node becomes one node. All rows are checked
    before the first one is used. A full pool takes no further nodes.

    Args:
        size: the number of nodes.
        rows: int32[n, 3], the proposals; their nodes are expanded in round `round_number`.
        drafter: its column in `evidence`; its bit in SOURCES is 1 << drafter.
        begin, end: its buckets 0, 1, ... are [begin, end) in the table of all drafters' buckets.
        suppressed: int32[n], tokens that are never drafted.
        vocab: token ids are in [0, vocab).

    Returns:
        The new number of nodes, or BAD_NODE, BAD_TOKEN or BAD_BUCKET if a row is refused.
    """
    for i in range(rows.shape[0]):
        node, token = rows[i, PROPOSAL_NODE], rows[i, PROPOSAL_TOKEN]
        if node < 0 or node >= size or pool[node, ROUND] != round_number:
            return BAD_NODE
        if token < 0 or token >= vocab:
            return BAD_TOKEN
        if rows[i, PROPOSAL_BUCKET] < 0 or rows[i, PROPOSAL_BUCKET] >= end - begin:
            return BAD_BUCKET
    for i in range(rows.shape[0]):
        parent = rows[i, PROPOSAL_NODE]
        token = rows[i, PROPOSAL_TOKEN]
        drafted = True
        for other in suppressed:
            drafted = drafted and token != other
        if not drafted:
            continue
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
        evidence[node, drafter] = begin + rows[i, PROPOSAL_BUCKET]
    return size


@njit
def best(pool, probs, size, limit, depth, round_number, chosen, frontier, top):
    """Choose the `limit` nodes of highest path probability, and those of them to expand next.

    Args:
        size: the number of nodes.
        depth: nodes at this depth, in tokens from the root, are not expanded.
        round_number: written to ROUND of the nodes to expand.
        chosen: int32[limit], receives the chosen nodes, parents before children.
        frontier: int32[limit], receives the nodes to expand: chosen ones that could still have
            children in the tree.
        top: float32[limit], scratch: the highest path probabilities, descending.

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
    spare = 0  # how many nodes of exactly the least path probability fit in
    while full and spare < limit and top[limit - 1 - spare] == least:
        spare += 1
    number = 0
    waiting = 0
    likeliest = np.float32(0.0)  # path probability of the nodes in `frontier`
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
        if probs[node, PATH] >= FRONTIER_SHARE * likeliest:
            pool[node, ROUND] = round_number
            frontier[ready] = node
            ready += 1
    return number, ready


_LEAST_UNPROPOSED = 0.01  # least probability given to "none of a node's children is picked"


@njit
def draw(pool, probs, nodes, generator):
    """Rank the children of some nodes at random, by Gumbel-top-k sampling without replacement.

    PATH of each child becomes exp of its perturbed log-probability, so that the children of highest
    PATH are a sample without replacement from their PROB. No child has a higher PATH than its
    parent: this is the top-down sampling of stochastic beam search (Kool, van Hoof and Welling
    2019, "Stochastic Beams and Where to Find Them"). "None of the children" takes part in the
    sampling, but is never in the tree.

    Args:
        nodes: int32[n], the nodes whose children are ranked, after their parents.
        generator: a numpy Generator; one number per child and one per node are drawn from it.
    """
    for node in nodes:
        path = 1.0
        above = node
        while above != 0:
            path *= probs[above, PROB]
            above = pool[above, PARENT]
        unproposed = 1.0
        highest = -np.inf
        child = pool[node, FIRST]
        while child != 0:
            unproposed -= probs[child, PROB]
            gumbel = -math.log(-math.log1p(-generator.random()) + 1e-300)
            probs[child, PATH] = math.log(path * probs[child, PROB] + 1e-30) + gumbel
            highest = max(highest, probs[child, PATH])
            child = pool[child, NEXT]
        gumbel = -math.log(-math.log1p(-generator.random()) + 1e-300)
        highest = max(highest, math.log(path * max(unproposed, _LEAST_UNPROPOSED)) + gumbel)
        bound = 1.0 if node == 0 else probs[node, PATH]
        child = pool[node, FIRST]
        while child != 0:  # shifted so that the highest of them would have the parent's PATH
            lower = 1.0 / bound - math.exp(-highest) + math.exp(-probs[child, PATH])
            probs[child, PATH] = min(1.0 / lower, bound)
            child = pool[child, NEXT]


@njit
def read(pool, probs, chosen, tokens, parents, kept, sources):
    """Copy the chosen search nodes to the arrays of a draft tree.

    They are put depth-first, the likeliest child first. The likeliest path is then at the front of
    the forward pass: where it is accepted, the cache slots to keep are where they belong.

    Args:
        chosen: int32[n], ascending node ids; the parent of each, if not the root, is among them.
            They are put in the order of the tree.
        tokens, parents, kept, sources: int32[n], int32[n], float32[n], uint16[n], receive what
            `hf_specplug.tree.DraftTree` holds.
    """
    count = chosen.shape[0]
    first = np.full(count + 1, -1)  # child of each node by rank; the last entry is the root's
    after = np.full(count, -1)  # the next sibling of each node
    above = np.empty(count, np.int64)
    for i in range(count):
        node = chosen[i]
        place = i - 1 if pool[node, PARENT] else -1
        while place >= 0 and chosen[place] != pool[node, PARENT]:
            place -= 1
        above[i] = place
        before, sibling = -1, first[place]
        while sibling >= 0 and probs[chosen[sibling], PATH] >= probs[node, PATH]:
            before, sibling = sibling, after[sibling]
        after[i] = sibling
        if before < 0:
            first[place] = i
        else:
            after[before] = i
    nodes, placed = chosen.copy(), np.full(count + 1, -1)
    i = first[-1]
    for place in range(count):
        node = nodes[i]
        placed[i] = place
        chosen[place], tokens[place] = node, pool[node, TOKEN]
        kept[place], sources[place] = probs[node, PROB], pool[node, SOURCES]
        parents[place] = placed[above[i]]
        down = first[i]
        while down < 0 and i >= 0:
            down, i = after[i], above[i]
        i = down


@njit
def with_root(root, tree_tokens, tree_parents, tree_sources, tokens, parents, sources):
    """Copy the root and the n nodes of a draft tree to arrays of n + 1, the root first."""
    tokens[0], parents[0], sources[0] = root, -1, 0
    for i in range(tree_tokens.shape[0]):
        tokens[i + 1] = tree_tokens[i]
        parents[i + 1] = tree_parents[i] + 1
        sources[i + 1] = tree_sources[i]


def ancestors(parents: Any) -> Any:
    """The tree attention mask: which nodes each node of a tree attends to; and the nodes' depths.

    Args:
        parents: int32[n], the index of each node's parent; -1 = the root.

    Returns:
        (bool[n + 1, n + 1], int64[n + 1]), over the root (0) and the n nodes (i + 1): row i is True
        at i, at every ancestor of it, and at the root; its depth is the number of its ancestors.

    Example:
        two children of the root: parents = [-1, -1] gives the rows [1, 0, 0], [1, 1, 0], [1, 0, 1]
        and the depths [0, 1, 1].
    """
    seen = np.zeros((len(parents) + 1, len(parents) + 1), np.bool_)
    depths = np.zeros(len(parents) + 1, np.int64)
    _inherit(parents, seen, depths)
    return seen, depths


@njit
def _inherit(parents, seen, depths):
    """A node attends to itself and to what its parent attends to."""
    seen[0, 0] = True
    for i in range(1, seen.shape[0]):
        above = parents[i - 1] + 1
        for j in range(above + 1):
            seen[i, j] = seen[above, j]
        seen[i, i] = True
        depths[i] = depths[above] + 1
