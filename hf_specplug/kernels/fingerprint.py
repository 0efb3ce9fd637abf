"""A fingerprint of memory, at the speed of reading it: has a tensor been changed?"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit


@njit
def fingerprint(words):
    """A 64-bit hash of `words` uint64[n]; any one changed or moved word changes it.

    Eight multiplicative (FNV-like) lanes, so that the processor can overlap them. It guards against
    accidents, not against forgery.
    """
    prime = np.uint64(0x9E3779B97F4A7C15)
    lanes = np.empty(8, np.uint64)
    for lane in range(8):
        lanes[lane] = np.uint64(lane + 1) * prime
    a, b, c, d = lanes[0], lanes[1], lanes[2], lanes[3]
    e, f, g, h = lanes[4], lanes[5], lanes[6], lanes[7]
    whole = words.shape[0] - words.shape[0] % 8
    for i in range(0, whole, 8):
        a = (a ^ words[i]) * prime
        b = (b ^ words[i + 1]) * prime
        c = (c ^ words[i + 2]) * prime
        d = (d ^ words[i + 3]) * prime
        e = (e ^ words[i + 4]) * prime
        f = (f ^ words[i + 5]) * prime
        g = (g ^ words[i + 6]) * prime
        h = (h ^ words[i + 7]) * prime
    for i in range(whole, words.shape[0]):
        a = (a ^ words[i]) * prime
    result = np.uint64(words.shape[0])
    for lane in (a, b, c, d, e, f, g, h):
        result = (result ^ (lane ^ (lane >> np.uint64(29)))) * prime
    return result ^ (result >> np.uint64(32))
