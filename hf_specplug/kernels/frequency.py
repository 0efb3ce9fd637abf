"""The tokens that are frequent lately, whatever precedes them: order 0 of a text compressor.

Instead of all weights decaying whenever a token is counted, the weight of an occurrence grows, so
that a count changes one weight. The counts are

    weights  float64[V]  of each token, in units of scale[0]
    scale    float64[2]  the weight of an occurrence now, and the sum of the weights
    top      int32[K]    the tokens of highest weight, descending; of equal ones the lower id comes
                         first; -1 = no more

As only a counted token can rise, `top` is exact with no more than K places.
"""

from __future__ import annotations

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import bucket
from hf_specplug.kernels.proposals import propose

RANKS = 16
"""Tokens proposed; more brought nothing up to 64 nodes."""

_SHARE_EDGES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15)
SHARES = len(_SHARE_EDGES) + 1
BUCKETS = SHARES * RANKS

_LARGEST = 1e100


@njit
def _above(weights, token, other):
    """Whether a token stands above another one in `top`; -1 stands below all."""
    if other < 0:
        return True
    return weights[token] > weights[other] or (weights[token] == weights[other] and token < other)


@njit
def rise(weights, top, token):
    """Move a token to its place in `top` after its weight has grown."""
    place = top.shape[0] - 1
    while place > 0 and top[place] != token:
        place -= 1
    if top[place] != token:  # not in the list: it enters at the end, if at all
        place = top.shape[0] - 1
        if not _above(weights, token, top[place]):
            return
    while place > 0 and _above(weights, token, top[place - 1]):
        top[place] = top[place - 1]
        place -= 1
    top[place] = token


@njit
def count(weights, scale, top, tokens, decay):
    """Count tokens in turn; each multiplies the weight of all earlier ones by `decay`.

    Args:
        weights, scale, top: changed in place.
        tokens: int32[n]; ids outside [0, V) are skipped.
        decay: in (0, 1].
    """
    for token in tokens:
        if token < 0 or token >= weights.shape[0]:
            continue
        scale[0] /= decay
        weights[token] += scale[0]
        scale[1] += scale[0]
        rise(weights, top, token)
        if scale[0] > _LARGEST:
            for other in range(weights.shape[0]):
                weights[other] /= scale[0]
            scale[1] /= scale[0]
            scale[0] = 1.0


@njit
def expand(weights, scale, top, out):
    """Propose the most frequent tokens at the root.

    Args:
        weights, scale, top: see above.
        out: int32[RANKS, 3], receives the proposals, the most frequent token first.

    Returns:
        The number of rows. The evidence bucket tells the token's share of all weights and its rank,
        in this order.
    """
    rows = 0
    for rank in range(top.shape[0]):
        token = top[rank]
        if token < 0:
            break
        share = bucket(weights[token] / scale[1], _SHARE_EDGES)
        rows = propose(out, rows, 0, token, share * RANKS + rank)
    return rows
