"""Pointers into a token store: where the text is like here, and what was said next there.

What is read is never trusted: a position outside the store is an end, so that a damaged file can
give wrong guesses, but no crash.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.retrieval import token_at

MOST = 64
"""Pointers at once: the bits of a search node's state."""

AHEAD = 32
"""Tokens that are looked ahead."""

SHARD, PLACE, AGREED = range(3)
COLUMNS = 3

_SHARPNESS = 20.0  # a vote weighs exp(_SHARPNESS * cosine)

SHARES = (0.1, 0.25, 0.5, 0.75, 0.95)
COSINES = (0.6, 0.75, 0.9)
VOTERS_UP_TO = (1, 3, 8)
VOTES = len(VOTERS_UP_TO) + 1
KINDS = (len(SHARES) + 1) * (len(COSINES) + 1) * VOTES
LENGTHS_UP_TO = (2, 8)
LENGTHS = len(LENGTHS_UP_TO) + 1
BUCKETS = LENGTHS * KINDS


@njit
def project(state, transform, out):
    """A state as a vector of length 1; False if it is not finite, or nothing is left of it.

    Args:
        state: float32[width].
        transform: float32[width + 1, dims]; the last row is added.
        out: float32[dims], receives the vector.
    """
    width, dims = state.shape[0], transform.shape[1]
    for j in range(dims):
        out[j] = transform[width, j]
    for i in range(width):
        value = state[i]
        for j in range(dims):
            out[j] += value * transform[i, j]
    square = np.float64(0.0)
    for j in range(dims):
        square += np.float64(out[j]) * np.float64(out[j])
    if not (square > 0.0 and square < np.inf):
        return False
    length = np.sqrt(square)
    for j in range(dims):
        out[j] = np.float32(out[j] / length)
    return True


@njit
def follow(tokens, shard, pointers, count, emitted):
    """Move the pointers of a shard along with the text; one that disagrees is lost (place -1).

    Args:
        tokens: of the shard.
        pointers: int64[MOST, COLUMNS]: shard, place of the next token, tokens that agreed.
        count: of pointers.
        emitted: int32[n], what was said.
    """
    for p in range(count):
        if pointers[p, SHARD] != shard or pointers[p, PLACE] < 0:
            continue
        for token in emitted:
            if token_at(tokens, pointers[p, PLACE]) != token:
                pointers[p, PLACE] = -1
                break
            pointers[p, PLACE] += 1
            pointers[p, AGREED] += 1


@njit
def compact(pointers, cosines, count):
    """Forget lost pointers; the number of those that are left."""
    kept = 0
    for p in range(count):
        if pointers[p, PLACE] >= 0:
            pointers[kept] = pointers[p]
            cosines[kept] = cosines[p]
            kept += 1
    return kept


@njit
def arrive(tokens, shard, places, near, root, pointers, cosines, count):
    """Point behind those neighbours of a state that were followed by the same token as it was.

    Args:
        places, near: int64[k], float32[k], the positions of the neighbours and their cosines,
            nearest first.
        root: the token that was picked in that state.

    Returns:
        The number of pointers now. If there are too many, one that is less alike and has not
        proved itself makes room.
    """
    for i in range(places.shape[0]):
        place = places[i]
        if place < 0 or not (near[i] > -2.0) or token_at(tokens, place + 1) != root:
            continue
        p = 0
        while p < count:
            if pointers[p, SHARD] == shard and pointers[p, PLACE] == place + 2:
                break
            p += 1
        if p < count:
            cosines[p] = max(cosines[p], near[i])
            continue
        if count < MOST:
            count += 1
        else:
            p = -1
            for q in range(count):
                least = cosines[p] if p >= 0 else near[i]
                if pointers[q, AGREED] <= 1 and cosines[q] < least:
                    p = q
            if p < 0:
                continue
        pointers[p, SHARD] = shard
        pointers[p, PLACE] = place + 2
        pointers[p, AGREED] = 1
        cosines[p] = near[i]
    return count


@njit
def look(tokens, vocab, shard, pointers, count, ahead):
    """Read what follows the pointers of a shard: int32[MOST, AHEAD], -1 from the end on."""
    for p in range(count):
        if pointers[p, SHARD] != shard:
            continue
        over = False
        for depth in range(AHEAD):
            token = np.int64(-1) if over else token_at(tokens, pointers[p, PLACE] + depth)
            if token < 0 or token >= vocab:
                over = True
                token = -1
            ahead[p, depth] = token


@njit
def expand(pointers, cosines, count, ahead, alive, pool, frontier, limit, out):
    """Continue every path by what follows the pointers that agree with it, by votes.

    Args:
        pointers, cosines, count, ahead: of the root.
        alive: uint64[capacity], for each search node the pointers that agree with it, as bits;
            those of a node's parent are known.
        pool: int32[capacity, k], the search nodes: token, parent and depth.
        frontier: int32[n], the nodes to expand; their parents were expanded before.
        limit: rows per node at most, of the most votes first.
        out: int32[n * limit, 3], receives (search node, token, evidence bucket).

    Returns:
        The number of rows.
    """
    tokens = np.empty(MOST, np.int32)
    votes, best = np.empty(MOST), np.empty(MOST, np.float32)
    voters, longest = np.empty(MOST, np.int64), np.empty(MOST, np.int64)
    one = np.uint64(1)
    rows = 0
    for i in range(frontier.shape[0]):
        node = frontier[i]
        depth = 0
        bits = np.uint64(0)
        if node == 0:
            for p in range(count):
                bits |= one << np.uint64(p)
        else:
            depth = pool[node, 2]
            above = alive[pool[node, 1]]
            if depth <= AHEAD:
                for p in range(count):
                    bit = one << np.uint64(p)
                    if above & bit and ahead[p, depth - 1] == pool[node, 0]:
                        bits |= bit
        alive[node] = bits
        if bits == 0 or depth >= AHEAD:
            continue
        distinct = 0
        whole = 0.0
        for p in range(count):
            if not bits & (one << np.uint64(p)):
                continue
            token = ahead[p, depth]
            agreed = pointers[p, AGREED] + depth
            vote = np.exp(_SHARPNESS * (np.float64(cosines[p]) - 1.0))
            whole += vote
            if token < 0:
                continue
            place = 0
            while place < distinct and tokens[place] != token:
                place += 1
            if place == distinct:
                tokens[place] = token
                votes[place], best[place] = 0.0, -1.0
                voters[place] = longest[place] = 0
                distinct += 1
            votes[place] += vote
            best[place] = max(best[place], cosines[p])
            voters[place] += 1
            longest[place] = max(longest[place], agreed)
        for _ in range(min(distinct, limit)):
            place = 0
            for other in range(1, distinct):
                if votes[other] > votes[place]:
                    place = other
            out[rows, 0] = node
            out[rows, 1] = tokens[place]
            out[rows, 2] = _bucket(longest[place], votes[place] / whole, best[place], voters[place])
            rows += 1
            votes[place] = -1.0
    return rows


@njit
def _bucket(agreed, share, cosine, voters):
    """Evidence as a small id: by length of agreement, share of votes, likeness, voters."""
    length = 0
    for most in LENGTHS_UP_TO:
        if agreed > most:
            length += 1
    column = 0
    for step in SHARES:
        if share >= step:
            column += 1
    likeness = 0
    for least in COSINES:
        if cosine >= least:
            likeness += 1
    number = 0
    for most in VOTERS_UP_TO:
        if voters > most:
            number += 1
    return length * KINDS + (column * (len(COSINES) + 1) + likeness) * VOTES + number
