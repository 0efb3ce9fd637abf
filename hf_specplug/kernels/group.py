"""The n-grams of one prompt, in the table of all n-grams (`kernels.successors`).

Rows of a batch are learned twice: in any text, and under their own prompt. The key of the latter
starts with the prompt's hash instead of `EMPTY_GRAM`. What the same question's answers say is
sharper than the mean over all questions, and serves the other rows at once.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels import successors
from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import PROB_BUCKETS, PROB_EDGES, bucket
from hf_specplug.kernels.proposals import propose
from hf_specplug.kernels.tree import PARENT, TOKEN

_EMPTY_GRAM, _VISITS = successors.EMPTY_GRAM, successors.VISITS
_SHORTEST, _LONGEST = successors.SHORTEST_GRAM, successors.LONGEST_GRAM
_VISIT_EDGES = (2, 4)  # those of `kernels.successors`
_longer, _find = successors.longer, successors.find
_claim, _mean = successors.claim, successors.mean

SCRATCH = 2 * _LONGEST
"""Keys of a path's n-grams: of any text, then those of the prompt."""


@njit
def learn(
    keys, stamps, visits, ids, probs, clock, prompt, text, tokens, parents, top_ids, top_probs
):
    """Add the target's distributions to the n-grams of one prompt.

    Args:
        prompt: uint64, the hash of the prompt, with which keys start.

    See `kernels.successors.learn` for the other arguments, and for what is returned.
    """
    for i in range(tokens.shape[0]):
        if not top_probs[i, 0] > 0:
            continue
        key = prompt
        place, before = i, text.shape[0]
        for length in range(1, _LONGEST + 1):
            if place >= 0:
                token = tokens[place]
                place = parents[place]
            else:
                before -= 1
                if before < 0:
                    break
                token = text[before]
            if token < 0:
                break
            key = _longer(key, token)
            if length >= _SHORTEST:
                clock += 1
                row = _claim(keys, stamps, visits, ids, probs, key, clock)
                _mean(visits, ids, probs, row, top_ids[i], top_probs[i])
    return clock


@njit
def lookup(keys, prompt, pool, node, text, grams):
    """Find the longest known n-gram at the end of a search node's path, first that of the prompt.

    Args:
        keys: of the table.
        prompt: uint64, the hash of the prompt.
        pool: see `hf_specplug.kernels`.
        text: int32[n], the text up to node 0, the last tokens of an n-gram at least.
        grams: uint64[SCRATCH], scratch.

    Returns:
        (row, tokens of the n-gram), (-1, 0) if none has a row.
    """
    key, own = np.uint64(_EMPTY_GRAM), prompt
    at = text.shape[0] - 1
    length = 0
    while length < _LONGEST:
        if node != 0:
            token = pool[node, TOKEN]
            node = pool[node, PARENT]
        elif at >= 0:
            token = text[at]
            at -= 1
        else:
            break
        if token < 0:
            break
        key, own = _longer(key, token), _longer(own, token)
        grams[length], grams[_LONGEST + length] = key, own
        length += 1
    for known in range(length, _SHORTEST - 1, -1):
        row = _find(keys, grams[_LONGEST + known - 1])
        if row < 0:
            row = _find(keys, grams[known - 1])
        if row >= 0:
            return row, known
    return -1, 0


@njit
def expand(keys, visits, ids, probs, prompt, pool, frontier, text, grams, out):
    """Propose to every frontier node the successors of the n-gram that `lookup` finds.

    Args:
        prompt, grams: as for `lookup`.

    See `kernels.successors.expand` for the other arguments, and for what is returned.
    """
    rows = 0
    for node in frontier:
        row, length = lookup(keys, prompt, pool, node, text, grams)
        if row < 0:
            continue
        often = bucket(visits[row], _VISIT_EDGES)
        begin = ((length - _SHORTEST) * _VISITS + often) * PROB_BUCKETS
        for place in range(ids.shape[1]):
            if ids[row, place] < 0 or not probs[row, place] > 0:
                break
            evidence = begin + bucket(probs[row, place], PROB_EDGES)
            rows = propose(out, rows, node, ids[row, place], evidence)
    return rows
