"""Several drafters in order: a later one names only what the earlier ones left to name."""

from __future__ import annotations

from hf_specplug.kernels._njit import njit

BAD_NODE, BAD_BUCKET = -1, -2


@njit
def begin(frontier, place, taken):
    """Note where each node of a frontier is in it, and that it has no rows yet."""
    for i in range(frontier.shape[0]):
        place[frontier[i]] = i
        taken[i] = 0


@njit
def take(rows, first, end, frontier, place, taken, named, size, out):
    """Add one level's rows to those of the levels before it.

    A node that has as many rows as `named` has columns gets no more, and no token twice.

    Args:
        rows: int32[m, 3], (search node, token, evidence bucket), the nodes in any order.
        first, end: where the level's buckets are among those of all levels.
        frontier: int32[n], the nodes that are expanded.
        place: int32[capacity], see `begin`.
        taken: int32[n], how many rows each of them has.
        named: int32[n, limit], their tokens.
        size: rows of `out` so far.
        out: int32[n * limit, 3], receives the rows.

    Returns:
        The rows so far, or why the level is refused: a node that was not asked about, or a bucket
        that it does not have.
    """
    for row in range(rows.shape[0]):
        node, token, bucket = rows[row, 0], rows[row, 1], rows[row, 2]
        if node < 0 or node >= place.shape[0]:
            return BAD_NODE
        i = place[node]
        if i < 0 or i >= frontier.shape[0] or frontier[i] != node:
            return BAD_NODE
        if bucket < 0 or bucket >= end - first:
            return BAD_BUCKET
        known = taken[i] == named.shape[1]
        for column in range(taken[i]):
            if named[i, column] == token:
                known = True
        if not known:
            named[i, taken[i]] = token
            taken[i] += 1
            out[size, 0] = node
            out[size, 1] = token
            out[size, 2] = first + bucket
            size += 1
    return size
