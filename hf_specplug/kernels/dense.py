"""Dense retrieval: pointers to places of similar hidden states, and what follows them.

A pointer is a place in a shard that follows a neighbour of the target's hidden state. It stays for
as long as the text continues as the shard does (as in RetoMaton: Alon et al. 2022, arXiv
2201.12431, section 3), and votes for the token that follows it.

No value read from a store is trusted: a position outside a shard counts as its end, so that a
damaged file gives wrong proposals, but no crash.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import bucket
from hf_specplug.kernels.proposals import propose
from hf_specplug.kernels.retrieval import token_at
from hf_specplug.kernels.tree import DEPTH, PARENT, TOKEN

MAX_POINTERS = 64
"""Pointers at a time: one bit each in a search node's uint64."""

LOOKAHEAD = 32
"""Tokens that are read after each pointer."""

POINTER_SHARD, POINTER_PLACE, POINTER_AGREED = range(3)
"""Columns of `pointers`: the shard; the position of the next token in it, -1 = lost; the number of
tokens for which it has agreed with the text."""
POINTER_COLUMNS = 3

_SHARPNESS = 20.0  # a vote counts exp(_SHARPNESS * (cosine - 1))

SHARE_EDGES = (0.1, 0.25, 0.5, 0.75, 0.95)
COSINE_EDGES = (0.6, 0.75, 0.9)
VOTER_EDGES = (2, 4, 9)
VOTE_BUCKETS = (len(SHARE_EDGES) + 1) * (len(COSINE_EDGES) + 1) * (len(VOTER_EDGES) + 1)
LENGTH_EDGES = (3, 9)
LENGTHS = len(LENGTH_EDGES) + 1
BUCKETS = LENGTHS * VOTE_BUCKETS


@njit
def project(state, transform, out):
    """Project a hidden state to a vector of length 1, as a store's vectors were.

    Args:
        state: float32[width].
        transform: float32[width + 1, dims]; the last row is the offset.
        out: float32[dims], receives the vector.

    Returns:
        False if the result is zero or not finite, and thus no direction.
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
    """Advance the pointers of one shard with the text; those that disagree are lost.

    Args:
        tokens: the tokens of the shard; any values are safe.
        shard: its number.
        pointers: int64[MAX_POINTERS, POINTER_COLUMNS], changed in place.
        count: the number of pointers.
        emitted: int32[n], the new tokens of the text.
    """
    for p in range(count):
        if pointers[p, POINTER_SHARD] != shard or pointers[p, POINTER_PLACE] < 0:
            continue
        for token in emitted:
            if token_at(tokens, pointers[p, POINTER_PLACE]) != token:
                pointers[p, POINTER_PLACE] = -1
                break
            pointers[p, POINTER_PLACE] += 1
            pointers[p, POINTER_AGREED] += 1


@njit
def compact(pointers, cosines, count):
    """Remove lost pointers, and their cosines; return the number of those that are left."""
    kept = 0
    for p in range(count):
        if pointers[p, POINTER_PLACE] >= 0:
            pointers[kept] = pointers[p]
            cosines[kept] = cosines[p]
            kept += 1
    return kept


@njit
def arrive(tokens, shard, places, near, root, pointers, cosines, count):
    """Add pointers behind the neighbours of a hidden state that were followed by the same token.

    A new pointer for which there is no room replaces the one of lowest cosine, if that is lower
    than its own and has agreed for one token at most; otherwise the new one is dropped.

    Args:
        tokens, shard: the tokens of the shard, and its number.
        places, near: int64[k], float32[k], the positions of the neighbours and their cosines,
            nearest first; -1 = none.
        root: the token that the target picked from the hidden state.
        pointers, cosines: int64[MAX_POINTERS, POINTER_COLUMNS], float32[MAX_POINTERS], changed in
            place.
        count: the number of pointers.

    Returns:
        The new number of pointers.
    """
    for i in range(places.shape[0]):
        place = places[i]
        if place < 0 or not (near[i] > -2.0) or token_at(tokens, place + 1) != root:
            continue
        p = 0
        while p < count:
            if pointers[p, POINTER_SHARD] == shard and pointers[p, POINTER_PLACE] == place + 2:
                break
            p += 1
        if p < count:
            cosines[p] = max(cosines[p], near[i])
            continue
        if count < MAX_POINTERS:
            count += 1
        else:
            p = -1
            for q in range(count):
                least = cosines[p] if p >= 0 else near[i]
                if pointers[q, POINTER_AGREED] <= 1 and cosines[q] < least:
                    p = q
            if p < 0:
                continue
        pointers[p, POINTER_SHARD] = shard
        pointers[p, POINTER_PLACE] = place + 2
        pointers[p, POINTER_AGREED] = 1
        cosines[p] = near[i]
    return count


@njit
def look(tokens, vocab, shard, pointers, count, ahead):
    """Read what follows the pointers of one shard.

    Args:
        tokens, shard: the tokens of the shard, and its number.
        vocab: an id of `vocab` or more separates documents.
        pointers, count: see `follow`.
        ahead: int32[MAX_POINTERS, LOOKAHEAD], receives the tokens; -1 from the document's end on.
    """
    for p in range(count):
        if pointers[p, POINTER_SHARD] != shard:
            continue
        over = False
        for depth in range(LOOKAHEAD):
            token = np.int64(-1) if over else token_at(tokens, pointers[p, POINTER_PLACE] + depth)
            if token < 0 or token >= vocab:
                over = True
                token = -1
            ahead[p, depth] = token


@njit
def expand(pointers, cosines, count, ahead, alive, pool, frontier, limit, out):
    """Propose to every frontier node what follows the pointers that agree with its path, by votes.

    Args:
        pointers, cosines, count, ahead: the pointers of the root, and what follows them (`look`).
        alive: uint64[capacity], at [node] the pointers that agree with the node's path, as bits;
            written for the frontier.
        pool, frontier: see `hf_specplug.kernels`.
        limit: proposals per node at most.
        out: int32[n * limit, 3], receives the proposals, of a node the one of most votes first.

    Returns:
        The number of rows.
    """
    ballot = (
        np.empty(MAX_POINTERS, np.int32),
        np.empty(MAX_POINTERS),
        np.empty(MAX_POINTERS, np.float32),
        np.empty(MAX_POINTERS, np.int64),
        np.empty(MAX_POINTERS, np.int64),
    )
    rows = 0
    for node in frontier:
        depth = 0 if node == 0 else pool[node, DEPTH]
        bits = alive[node] = _agreeing(count, ahead, alive, pool, node, depth)
        if bits != 0 and depth < LOOKAHEAD:
            distinct, whole = _vote(pointers, cosines, count, ahead, bits, depth, ballot)
            rows = _elect(ballot, distinct, whole, node, limit, rows, out)
    return rows


@njit
def _agreeing(count, ahead, alive, pool, node, depth):
    """The pointers that agree with a node's path, as bits: those of its parent that go on so."""
    one = np.uint64(1)
    bits = np.uint64(0)
    if node == 0:
        for p in range(count):
            bits |= one << np.uint64(p)
    elif depth <= LOOKAHEAD:
        above = alive[pool[node, PARENT]]
        for p in range(count):
            bit = one << np.uint64(p)
            if above & bit and ahead[p, depth - 1] == pool[node, TOKEN]:
                bits |= bit
    return bits


@njit
def _vote(pointers, cosines, count, ahead, bits, depth, ballot):
    """Let the pointers in `bits` vote for the token that follows them.

    Args:
        ballot: arrays over the distinct tokens, which receive each token, its votes, its highest
            cosine, its voters and its longest agreement.

    Returns:
        (number of distinct tokens, sum of all votes)
    """
    tokens, votes, best, voters, longest = ballot
    distinct = 0
    whole = 0.0
    for p in range(count):
        if not bits & (np.uint64(1) << np.uint64(p)):
            continue
        token = ahead[p, depth]
        agreed = pointers[p, POINTER_AGREED] + depth
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
    return distinct, whole


@njit
def _elect(ballot, distinct, whole, node, limit, rows, out):
    """Propose the tokens of most votes; the new number of rows."""
    tokens, votes, best, voters, longest = ballot
    for _ in range(min(distinct, limit)):
        place = 0
        for other in range(1, distinct):
            if votes[other] > votes[place]:
                place = other
        share = votes[place] / whole
        evidence = _evidence(longest[place], share, best[place], voters[place])
        rows = propose(out, rows, node, tokens[place], evidence)
        votes[place] = -1.0
    return rows


@njit
def _evidence(agreed, share, cosine, voters):
    """The evidence bucket: by length of agreement, share of votes, cosine and number of voters."""
    column = bucket(share, SHARE_EDGES) * (len(COSINE_EDGES) + 1) + bucket(cosine, COSINE_EDGES)
    votes = column * (len(VOTER_EDGES) + 1) + bucket(voters, VOTER_EDGES)
    return bucket(agreed, LENGTH_EDGES) * VOTE_BUCKETS + votes
