"""The rounds of a search in one call, for the drafters whose `expand` is a kernel itself.

In each round these drafters expand the frontier, the mixer weighs what they propose, and the nodes
to expand next are chosen. Called from Python, each of these kernels takes as long to enter as to
run; a search has five to eight rounds.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels import tree
from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.mixer import mix
from hf_specplug.kernels.tables import rows

ASKED_DRAFTER, ASKED_ROUNDS, ASKED_COLUMN, ASKED_BEGIN, ASKED_END = range(5)
"""Columns of `asked`: the drafter; in how many rounds it is asked; its column in `evidence`; its
buckets in the table of all drafters' buckets."""
ASKED_COLUMNS = 5

SIZE, WAITING, ROUND, NUMBER = range(4)
"""Entries of `state`: the nodes in the pool; the nodes to expand; the round; the chosen nodes."""
STATE_COLUMNS = 4


@njit
def _expand(asked, tables, allowed, root, noise, start, search, scratch, nodes, number, size):
    """Let all drafters expand some nodes in round `number`; see `run` for the arguments.

    Returns:
        (the new number of nodes in the pool, -1), or (the reason, the row in `asked`) if the
        proposals of a drafter are refused.
    """
    suppressed, vocab = allowed
    pool, probs, evidence, shown = search
    matches, out = scratch
    for row in range(asked.shape[0]):
        if number > asked[row, ASKED_ROUNDS]:
            continue
        drafter = asked[row, ASKED_DRAFTER]
        count = rows(drafter, tables, root, noise, start, matches, shown, nodes, out)
        size = tree.insert(
            pool,
            probs,
            evidence,
            size,
            out[:count],
            asked[row, ASKED_COLUMN],
            asked[row, ASKED_BEGIN],
            asked[row, ASKED_END],
            suppressed,
            vocab,
            number,
        )
        if size < 0:
            return size, row
    return size, -1


@njit
def follow(pool, probs, limit, depth, round_number, chosen, frontier):
    """Continue a chain with the likeliest child of its last node, `frontier[0]`.

    Args:
        limit, depth: nodes of the chain at most.
        round_number: the round to come; the chain has `round_number - 2` nodes.
        chosen, frontier: as for `best`.

    Returns:
        (number chosen, 1 if the chain continues, else 0)
    """
    number = round_number - 2
    child = pool[frontier[0], tree.FIRST]
    likeliest, highest = child, np.float32(0.0)
    while child != 0:
        if probs[child, tree.PATH] > highest:
            likeliest, highest = child, probs[child, tree.PATH]
        child = pool[child, tree.NEXT]
    if not highest > 0.0:
        return number, 0
    chosen[number] = frontier[0] = likeliest
    pool[likeliest, tree.ROUND] = round_number
    number += 1
    return number, 1 if number < limit and number < depth else 0


@njit
def run(
    rounds, asked, tables, allowed, root, noise, search, mixing, bounds, choice, scratch, state
):
    """Run up to `rounds` rounds of a search, until no node waits to be expanded.

    Args:
        asked: int64[n, ASKED_COLUMNS], the drafters to ask, in this order.
        tables: `Tables`.
        allowed: `suppressed` and `vocab` of `kernels.tree.insert`.
        root: the last accepted token.
        noise: `noise` and `start` of `kernels.mixer.mix`.
        search: `pool`, `probs` and `evidence` of `kernels.tree`; `pool` once more, read-only.
        mixing: `table`, `weights`, `apm` and `room` of `kernels.mixer.mix`.
        bounds: nodes of the tree at most, its depth, and whether to grow a single path.
        choice: `chosen`, `frontier` and `top` of `kernels.tree.best`; `frontier` once more,
            read-only.
        scratch: int32[capacity], `matches` of `ngram.expand`; int32[limit * MOST_ROWS, 3].
        state: int64[STATE_COLUMNS], changed in place.

    Returns:
        -1, or the row in `asked` of a drafter whose proposals are refused; state[SIZE] is then the
        reason, as `insert` gives it.
    """
    noises, start = noise
    pool, probs, evidence, _ = search
    table, weights, apm, room = mixing
    limit, depth, chain = bounds
    chosen, frontier, top, nodes = choice
    for _ in range(rounds):
        waiting, number = state[WAITING], state[ROUND]
        if waiting == 0:
            break
        now = nodes[:waiting]
        size, refused = _expand(
            asked, tables, allowed, root, noises, start, search, scratch, now, number, state[SIZE]
        )
        state[SIZE] = size
        if refused >= 0:
            return refused
        mix(pool, probs, evidence, now, table, weights, apm, noises, start, room)
        number += 1
        if chain:
            count, waiting = follow(pool, probs, limit, depth, number, chosen, frontier)
        else:
            count, waiting = tree.best(
                pool, probs, size, limit, depth, number, chosen, frontier, top
            )
        state[WAITING], state[ROUND], state[NUMBER] = waiting, number, count
    return -1
