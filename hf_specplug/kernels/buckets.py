"""Evidence buckets: how a measure, such as a match length or a probability, becomes a small id."""

from __future__ import annotations

from hf_specplug.kernels._njit import inline

PROB_EDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
PROB_BUCKETS = len(PROB_EDGES) + 1

COUNT_EDGES = (2, 4, 16)
"""Of occurrences: 1, 2 or 3, 4 to 15, more."""


@inline
def bucket(value, edges):
    """The bucket of a value: the number of `edges` (ascending) that it reaches.

    Example:
        >>> bucket(3, (2, 4, 16)), bucket(4, (2, 4, 16))
        (1, 2)
    """
    place = 0
    for edge in edges:
        if value >= edge:
            place += 1
    return place
