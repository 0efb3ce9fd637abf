"""The softmax mixer: from what several experts say of a node's children to one probability each.

It works on the search's arrays (see `kernels.tree`) and on

    evidence  int16[capacity, D]     at [node, d] the bucket in which drafter d named the node, in
                                     the table of all drafters' buckets; 0 = it did not
    table     float32[buckets, 3]    of each bucket: prior P(accepted), its log-odds, and the weight
                                     set that it calls for
    weights   float64[SETS, 3D + 3]  of each set: w, b and v of each drafter, the bias, then a and c
                                     for when the noise of sampling is known
    apm       float64[DEPTHS, BINS]  the final recalibration, over depth and log-odds
"""

from __future__ import annotations

import math

import numpy as np

from hf_specplug.kernels._njit import njit
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

PRIOR, LOGIT, SET = range(3)
SETS = 4
DEPTHS = 3
BINS = 33
_SPAN = 8.0  # the apm covers log-odds of -8 to 8
_LEAST = 0.02  # of "none of mine" in the absence term
_LARGEST = 30.0  # score


@njit
def _listen(pool, evidence, first, table, mass):
    """Sum each drafter's priors over the siblings that begin at `first`; return the weight set."""
    for d in range(evidence.shape[1]):
        mass[d] = 0.0
    chosen = np.int64(0)
    child = first
    while child != 0:
        for d in range(evidence.shape[1]):
            bucket = evidence[child, d]
            if bucket != 0:
                mass[d] += table[bucket, PRIOR]
                called = np.int64(table[bucket, SET])
                chosen = called if called > chosen else chosen
        child = pool[child, NEXT]
    return chosen


@njit
def _within(value, least, most):
    """What `min` and `max` would say, which are compiled anew in every kernel."""
    return least if value < least else (most if value > most else value)


@njit
def _place(depth, prob):
    """Where the apm holds this case: (row, lower bin, weight of the bin above)."""
    row = 0 if depth <= 1 else (1 if depth <= 4 else 2)
    odds = math.log(_within(prob, 1e-9, 1.0) / _within(1.0 - prob, 1e-9, 1.0))
    place = (_within(odds, -_SPAN, _SPAN) + _SPAN) * (BINS - 1) / (2.0 * _SPAN)
    below = np.int64(place if place < BINS - 2.0 else BINS - 2.0)
    return row, below, place - below


_EULER = 0.5772156649015329  # the mean of -ln e


@njit
def _favour(u):
    """How sampling favours a token whose exponential noise is -ln(1 - u): 0 on average."""
    noise = -math.log1p(-u)
    return _within(-math.log(noise if noise > 1e-30 else 1e-30) - _EULER, -2.0, 4.0)


@njit
def mix(pool, probs, evidence, nodes, table, weights, apm, noise, start, room):
    """Set PROB and PATH (and RAW, before recalibration) of all children of some nodes.

        s_i = bias + sum over d that name i of (w_d log-odds(p_di) + b_d)
                   + sum over d that speak, but not of i, of v_d ln(1 - sum_j p_dj)
        P_i = exp s_i / (1 + sum_j exp s_j)

    The 1 stands for "none of these"; so no renormalisation is needed. Where the noise of sampling
    is known, s_i grows by a f_i + c: f_i is how it favours the token, and c stands for how it may
    favour those that nobody named.

    Args:
        nodes: int32[n], search nodes that all drafters have been asked about.
        noise: float64[positions, V], uniform numbers by position from the root on, to be read in a
            circle from row `start`; no rows if there is no noise.
        room: float64[2, 3D + 3], to work in.
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
                absent[d] = chosen[3 * d + 2] * math.log(_within(1.0 - mass[d], _LEAST, 1.0))
                base += absent[d]
        foreseen = pool[first, DEPTH] <= noise.shape[0]
        row = (start + pool[first, DEPTH] - 1) % noise.shape[0] if foreseen else 0
        total = 1.0
        child = first
        while child != 0:
            score = base
            for d in range(count):
                bucket = evidence[child, d]
                if bucket != 0:
                    score += chosen[3 * d] * table[bucket, LOGIT] + chosen[3 * d + 1] - absent[d]
            if foreseen and pool[child, TOKEN] < noise.shape[1]:
                probs[child, NOISE] = _favour(noise[row, pool[child, TOKEN]])
                score += chosen[3 * count + 1] * probs[child, NOISE] + chosen[3 * count + 2]
            odds = math.exp(_within(score, -_LARGEST, _LARGEST))
            probs[child, RAW] = odds
            total += odds
            child = pool[child, NEXT]
        child = first
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
    """One gradient step of the log-likelihood at each node on the path that the target took.

    At the root and at every accepted node, all candidates teach, drafted or not.

    Args:
        emitted: int32[n], the tokens that the target picked, from the root on.
        rates: of w and v, of b and bias, of the apm.
        room: float64[2, 3D + 3], to work in.

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
                bucket = evidence[child, d]
                if bucket != 0:
                    slope[3 * d] += error * table[bucket, LOGIT]
                    slope[3 * d + 1] += error
                elif mass[d] > 0.0:
                    slope[3 * d + 2] += error * math.log(_within(1.0 - mass[d], _LEAST, 1.0))
            child = pool[child, NEXT]
        for d in range(count):
            chosen[3 * d] += rates[0] * slope[3 * d]
            chosen[3 * d + 1] += rates[1] * slope[3 * d + 1]
            chosen[3 * d + 2] += rates[0] * slope[3 * d + 2]
        for last in range(3 * count, 3 * count + 3):
            chosen[last] += rates[1] * slope[last]
        if following == 0:
            break
        node = following
    return visited
