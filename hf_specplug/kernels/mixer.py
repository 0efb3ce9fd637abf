"""The softmax mixer: from the evidence of several drafters to one probability per proposed child.

Context mixing as in Mahoney's PAQ compressors (Mahoney 2005, "Adaptive Weighing of Context Models
for Lossless Data Compression"), applied to drafting. It reads and writes the search pool (see
`kernels.tree` for `pool`, `probs` and `evidence`), with

    table     float32[buckets, 3]    of each evidence bucket: the prior P(accepted), its log-odds,
                                     and the weight set that it calls for
    weights   float64[SETS, 3D + 3]  of each set: w, b and v of each of D drafters, the bias, then a
                                     and c, used if the sampling noise is known
    apm       float64[DEPTHS, BINS]  the final recalibration by depth and log-odds (the adaptive
                                     probability map of PAQ)
"""

from __future__ import annotations

import math

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import bucket
from hf_specplug.kernels.tree import (
    DEPTH,
    FIRST,
    NEXT,
    NOISE,
    PATH,
    PROB,
    RAW,
    ROUND,
    TOKEN,
)

BUCKET_PRIOR, BUCKET_LOGIT, BUCKET_SET = range(3)
"""Columns of `table`."""

SETS = 4
_DEPTH_EDGES = (2, 5)  # tokens from the root
DEPTHS = len(_DEPTH_EDGES) + 1
BINS = 33
_SPAN = 8.0  # the apm covers log-odds from -8 to 8
_LEAST_REST = 0.02  # least probability of "none of my proposals" in the absence term
_LARGEST_SCORE = 30.0


@njit
def _listen(pool, evidence, first, table, mass):
    """Sum each drafter's priors over the siblings from `first` on; return the weight set to use."""
    for d in range(evidence.shape[1]):
        mass[d] = 0.0
    chosen = np.int64(0)
    child = first
    while child != 0:
        for d in range(evidence.shape[1]):
            kind = evidence[child, d]
            if kind != 0:
                mass[d] += table[kind, BUCKET_PRIOR]
                called = np.int64(table[kind, BUCKET_SET])
                chosen = called if called > chosen else chosen
        child = pool[child, NEXT]
    return chosen


@njit
def _within(value, least, most):
    """Clip a value. (`min` and `max` would be compiled again in every kernel.)"""
    return least if value < least else (most if value > most else value)


@njit
def _place(depth, prob):
    """The place of a probability in the apm: (row, lower bin, weight of the bin above)."""
    row = bucket(depth, _DEPTH_EDGES)
    odds = math.log(_within(prob, 1e-9, 1.0) / _within(1.0 - prob, 1e-9, 1.0))
    place = (_within(odds, -_SPAN, _SPAN) + _SPAN) * (BINS - 1) / (2.0 * _SPAN)
    below = np.int64(place if place < BINS - 2.0 else BINS - 2.0)
    return row, below, place - below


_EULER = 0.5772156649015329  # the mean of -ln e for exponential e: Euler's constant


@njit
def _favour(u):
    """How sampling favours a token: its Gumbel noise -ln e, e = -ln(1 - u), centred and clipped."""
    noise = -math.log1p(-u)
    return _within(-math.log(noise if noise > 1e-30 else 1e-30) - _EULER, -2.0, 4.0)


@njit
def mix(pool, probs, evidence, nodes, table, weights, apm, noise, start, room):
    """Set the probabilities PROB, PATH and RAW of all children of some nodes.

        s_i = bias + sum over drafters d that propose i of (w_d log-odds(p_di) + b_d)
                   + sum over drafters d that propose others, but not i, of v_d ln(1 - sum_j p_dj)
        P_i = exp s_i / (1 + sum_j exp s_j)

    The 1 stands for "none of these", so that no renormalisation is needed. If the sampling noise is
    known, a f_i + c is added to s_i: f_i tells how the noise favours the token, and c allows for
    tokens that the noise favours and nobody proposed. PROB is the mean of P_i (RAW) and its
    recalibration by the apm.

    Args:
        pool, probs, evidence: see `kernels.tree`.
        nodes: int32[n], search nodes that all drafters have expanded.
        table, weights, apm: see above.
        noise: float64[positions, V], a ring buffer of uniform numbers in [0, 1); row `start`
            belongs to the pick at the root. No rows if there is no noise.
        room: float64[2, 3D + 3], scratch.
    """
    count = evidence.shape[1]
    mass, absent = room[0], room[1]
    for node in nodes:
        first = pool[node, FIRST]
        if first == 0:
            continue
        chosen = weights[_listen(pool, evidence, first, table, mass)]
        base = chosen[3 * count]
        for d in range(count):
            absent[d] = 0.0
            if mass[d] > 0.0:
                absent[d] = chosen[3 * d + 2] * math.log(_within(1.0 - mass[d], _LEAST_REST, 1.0))
                base += absent[d]
        foreseen = pool[first, DEPTH] <= noise.shape[0]
        row = (start + pool[first, DEPTH] - 1) % noise.shape[0] if foreseen else 0
        total = 1.0
        child = first
        while child != 0:
            score = base
            for d in range(count):
                kind = evidence[child, d]
                if kind != 0:
                    score += (
                        chosen[3 * d] * table[kind, BUCKET_LOGIT] + chosen[3 * d + 1] - absent[d]
                    )
            if foreseen and pool[child, TOKEN] < noise.shape[1]:
                probs[child, NOISE] = _favour(noise[row, pool[child, TOKEN]])
                score += chosen[3 * count + 1] * probs[child, NOISE] + chosen[3 * count + 2]
            odds = math.exp(_within(score, -_LARGEST_SCORE, _LARGEST_SCORE))
            probs[child, RAW] = odds
            total += odds
            child = pool[child, NEXT]
        _recalibrate(pool, probs, apm, node, total)


@njit
def _recalibrate(pool, probs, apm, node, total):
    """Turn the odds in RAW of a node's children into RAW, PROB and PATH; `total` is their sum."""
    child = pool[node, FIRST]
    while child != 0:
        raw = probs[child, RAW] / total
        row, below, above = _place(pool[child, DEPTH], raw)
        refined = apm[row, below] * (1.0 - above) + apm[row, below + 1] * above
        prob = _within(0.5 * (raw + refined), 1e-6, 1.0)
        probs[child, RAW] = raw
        probs[child, PROB] = prob
        probs[child, PATH] = prob * probs[node, PATH]
        child = pool[child, NEXT]


@njit
def learn(pool, probs, evidence, emitted, table, weights, apm, rates, room):
    """Take one gradient step on the log-likelihood at each node of the accepted path.

    The root and every accepted node teach, with all proposed children, whether these were in the
    draft tree or not.

    Args:
        pool, probs, evidence, table, weights, apm: as for `mix`; `weights` and `apm` are changed in
            place.
        emitted: int32[n], the tokens that the target picked, from the root on.
        rates: float64[3], the learning rates of w and v, of b, bias, a and c, and of the apm.
        room: float64[2, 3D + 3], scratch.

    Returns:
        The number of nodes that were learned from.
    """
    count = evidence.shape[1]
    mass, slope = room[0], room[1]
    node = 0
    visited = 0
    for token in emitted:
        if pool[node, ROUND] == 0:  # never expanded
            break
        visited += 1
        first = pool[node, FIRST]
        if first == 0:
            break
        chosen = weights[_listen(pool, evidence, first, table, mass)]
        for i in range(3 * count + 3):
            slope[i] = 0.0
        following = 0
        child = first
        while child != 0:
            raw = np.float64(probs[child, RAW])
            right = 0.0
            if pool[child, TOKEN] == token:
                right = 1.0
                following = child
            row, below, above = _place(pool[child, DEPTH], raw)
            apm[row, below] += rates[2] * (1.0 - above) * (right - apm[row, below])
            apm[row, below + 1] += rates[2] * above * (right - apm[row, below + 1])
            error = right - raw
            slope[3 * count] += error
            if probs[child, NOISE] != 0.0:
                slope[3 * count + 1] += error * probs[child, NOISE]
                slope[3 * count + 2] += error
            for d in range(count):
                kind = evidence[child, d]
                if kind != 0:
                    slope[3 * d] += error * table[kind, BUCKET_LOGIT]
                    slope[3 * d + 1] += error
                elif mass[d] > 0.0:
                    slope[3 * d + 2] += error * math.log(_within(1.0 - mass[d], _LEAST_REST, 1.0))
            child = pool[child, NEXT]
        _ascend(chosen, slope, rates)
        if following == 0:
            break
        node = following
    return visited


@njit
def _ascend(weights, slope, rates):
    """Move one set of weights along the gradient: w and v at rates[0], all others at rates[1]."""
    last = weights.shape[0] - 3
    for place in range(0, last, 3):
        weights[place] += rates[0] * slope[place]
        weights[place + 1] += rates[1] * slope[place + 1]
        weights[place + 2] += rates[0] * slope[place + 2]
    for place in range(last, last + 3):
        weights[place] += rates[1] * slope[place]
