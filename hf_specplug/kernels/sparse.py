"""What followed some of the last three tokens: low-order and sparse contexts of a text compressor.

A context is a choice among the last tokens, a mask whose bit j stands for the token j + 1 places
back: 0b010 is the token before the last, whatever the last one is. What was learned is a table of
`hf_specplug.kernels.successors`, whose weights are decayed sums of counts and probabilities; its
keys hold the mask, too.
"""

from __future__ import annotations

import math

import numpy as np

from hf_specplug.kernels import successors
from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.proposals import propose
from hf_specplug.kernels.tree import DEPTH, PARENT, TOKEN

CONTEXTS = (0b001, 0b011, 0b010, 0b101, 0b110)
"""The masks. More of them, further back too, brought nothing more."""

REACH = 3
"""Tokens back that a mask can name."""

SUCCESSORS = 8
"""Successors of a context in the table."""

_PROPOSED = 6  # of them, the most frequent
_CANDIDATES = len(CONTEXTS) * _PROPOSED

_LIMITS = (16, 6)
"""Proposals per node by its depth; deeper nodes get none."""

DEPTHS = len(_LIMITS)
MOST_ROWS = _LIMITS[0]

_LEAST_PROB = 0.05
"""Tokens that the target found less likely are not learned."""

_UNKNOWN = 2.0
"""Weight of what has not been seen after a context, in occurrences."""

_LEAST_REST = 0.02  # least probability of "not this token" that one context gives
SCORES = 40
_PER_UNIT = 4.0  # evidence buckets per unit of the log-odds
BUCKETS = DEPTHS * SCORES

_EMPTY_GRAM, _longer = successors.EMPTY_GRAM, successors.longer
_add, _claim, _count = successors.add, successors.claim, successors.count
_find = successors.find


@njit
def _key(mask, recent):
    """The key of a context at the end of a path; 0 if a token of it is missing.

    Args:
        recent: int32[REACH], the last tokens, the last one first; -1 = none.
    """
    key = _longer(np.uint64(_EMPTY_GRAM), mask)
    for back in range(REACH):
        if (mask >> back) & 1:
            if recent[back] < 0:
                return np.uint64(0)
            key = _longer(key, recent[back])
    return key


@njit
def learn(keys, stamps, visits, ids, weights, clock, text, begin, top_ids, top_probs, rows, decay):
    """Learn each token of a text, and what else was likely in its place, after all its contexts.

    The token counts 1, and those that the target found likely count their probability.

    Args:
        keys, stamps, visits, ids, weights: the table, changed in place.
        clock: the last stamp given.
        text: int32[n]; negative ids, and contexts that hold one, are not learned.
        begin: the first token to learn.
        top_ids, top_probs: int32[n, k], float32[n, k], the target's likeliest next tokens,
            descending.
        rows: int32[r], the rows of `top_ids` for the last r places of the text.
        decay: all weights of a context are multiplied by it whenever the context occurs again.

    Returns:
        The last stamp given now.
    """
    recent = np.empty(REACH, np.int32)
    for place in range(begin, text.shape[0]):
        if text[place] < 0:
            continue
        for back in range(REACH):
            recent[back] = text[place - 1 - back] if place > back else -1
        shown = place - text.shape[0] + rows.shape[0]
        for mask in CONTEXTS:
            key = _key(np.int32(mask), recent)
            if key == np.uint64(0):
                continue
            clock += 1
            row = _claim(keys, stamps, visits, ids, weights, key, clock)
            _count(visits, ids, weights, row, text[place], decay)
            if shown >= 0:
                likely = rows[shown]
                for k in range(top_ids.shape[1]):
                    if not top_probs[likely, k] > _LEAST_PROB:
                        break
                    _add(ids, weights, row, top_ids[likely, k], top_probs[likely, k])
    return clock


@njit
def _recent(pool, node, text, recent):
    """Read the last tokens of a search node's path."""
    at = text.shape[0] - 1
    for back in range(REACH):
        recent[back] = -1
        if node != 0:
            recent[back] = pool[node, TOKEN]
            node = pool[node, PARENT]
        elif at >= 0:
            recent[back] = text[at]
            at -= 1


@njit
def pool_contexts(keys, ids, weights, recent, tokens, probs):
    """What the contexts say together about the next token, each as an independent witness.

        P(token) = 1 - product over contexts of (1 - w / (_UNKNOWN + sum of w))

    with w the weights of the context's row.

    Args:
        keys, ids, weights: arrays of the table.
        recent: int32[REACH], the last tokens, the last one first; -1 = none.
        tokens, probs: int32[_CANDIDATES], float64[_CANDIDATES], receive the tokens and their P,
            descending; of equal ones, the one that an earlier context named comes first.

    Returns:
        The number of tokens.
    """
    known = 0
    for mask in CONTEXTS:
        key = _key(np.int32(mask), recent)
        row = _find(keys, key) if key != np.uint64(0) else -1
        if row < 0:
            continue
        whole = _UNKNOWN
        for place in range(ids.shape[1]):
            whole += weights[row, place]
        for place in range(_PROPOSED):
            token = ids[row, place]
            if token < 0:
                break
            rest = 1.0 - weights[row, place] / whole
            at = 0
            while at < known and tokens[at] != token:
                at += 1
            if at == known:
                tokens[at], probs[at] = token, 1.0
                known += 1
            probs[at] *= rest if rest > _LEAST_REST else _LEAST_REST
    for i in range(known):
        token, prob = tokens[i], 1.0 - probs[i]
        at = i
        while at > 0 and probs[at - 1] < prob:
            tokens[at], probs[at] = tokens[at - 1], probs[at - 1]
            at -= 1
        tokens[at], probs[at] = token, prob
    return known


@njit
def expand(keys, ids, weights, pool, frontier, text, out):
    """Propose to the frontier nodes that are not too deep what followed their contexts.

    Args:
        keys, ids, weights: arrays of the table.
        pool, frontier: see `hf_specplug.kernels`.
        text: int32[n], the text up to node 0, the last `REACH` tokens at least.
        out: int32[n * MOST_ROWS, 3], receives the proposals, the likeliest of a node first.

    Returns:
        The number of rows. The evidence bucket tells the node's depth and the log-odds of the
        token, in this order.
    """
    recent = np.empty(REACH, np.int32)
    tokens, probs = np.empty(_CANDIDATES, np.int32), np.empty(_CANDIDATES)
    rows = 0
    for node in frontier:
        depth = 0 if node == 0 else pool[node, DEPTH]
        if depth >= DEPTHS:
            continue
        _recent(pool, node, text, recent)
        known = pool_contexts(keys, ids, weights, recent, tokens, probs)
        for i in range(known if known < _LIMITS[depth] else _LIMITS[depth]):
            score = SCORES / 2 + _PER_UNIT * math.log(probs[i] / (1.0 - probs[i]))
            step = 0.0 if score < 0.0 else (SCORES - 1.0 if score > SCORES - 1.0 else score)
            rows = propose(out, rows, node, tokens[i], depth * SCORES + np.int64(step))
    return rows
