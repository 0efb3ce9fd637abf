"""Drafters in order: a later one fills only the proposals that the earlier ones left open."""

from __future__ import annotations

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.proposals import (
    PROPOSAL_BUCKET,
    PROPOSAL_NODE,
    PROPOSAL_TOKEN,
    propose,
)
from hf_specplug.kernels.tree import BAD_BUCKET, BAD_NODE


@njit
def begin(frontier, place, taken):
    """Start a round without proposals.

    Args:
        frontier: int32[n], the nodes to expand.
        place: int32[capacity], receives at [node] the node's index in `frontier`.
        taken: int32[n or more], receives 0 for each node of `frontier`.
    """
    for i in range(frontier.shape[0]):
        place[frontier[i]] = i
        taken[i] = 0


@njit
def take(rows, first, end, frontier, place, taken, tokens, size, out):
    """Add one level's proposals to those of the levels before it.

    A node takes `limit` proposals at most (the columns of `tokens`), and each token once.

    Args:
        rows: int32[m, 3], the level's proposals, the nodes in any order.
        first, end: the level's buckets 0, 1, ... are [first, end) in those of all levels.
        frontier: int32[n], the nodes that are expanded.
        place: int32[capacity], see `begin`.
        taken: int32[n], the number of proposals of each node of `frontier`.
        tokens: int32[n, limit], their tokens.
        size: the number of rows in `out`.
        out: int32[n * limit, 3], receives the proposals.

    Returns:
        The new number of rows in `out`; or BAD_NODE or BAD_BUCKET if the level proposes for a node
        that is not in `frontier`, or with a bucket that it does not have.
    """
    for row in range(rows.shape[0]):
        node, token = rows[row, PROPOSAL_NODE], rows[row, PROPOSAL_TOKEN]
        bucket = rows[row, PROPOSAL_BUCKET]
        if node < 0 or node >= place.shape[0]:
            return BAD_NODE
        i = place[node]
        if i < 0 or i >= frontier.shape[0] or frontier[i] != node:
            return BAD_NODE
        if bucket < 0 or bucket >= end - first:
            return BAD_BUCKET
        known = taken[i] == tokens.shape[1]
        for column in range(taken[i]):
            if tokens[i, column] == token:
                known = True
        if not known:
            tokens[i, taken[i]] = token
            taken[i] += 1
            size = propose(out, size, node, token, first + bucket)
    return size
