"""Counting what became of a verified tree, for statistics."""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit


@njit
def tally(parents, probs, sources, visited, bins, by_drafter):
    """Count the nodes of a verified tree by predicted probability and by drafter.

    Args:
        parents, probs, sources: int32[n], float32[n], uint16[n]; see `hf_specplug.tree.DraftTree`.
        visited: int32[m], indices of the accepted nodes; 0 = root, i + 1 = node i.
        bins: float64[3, B], changed in place: of the nodes whose parent was accepted, by predicted
            probability, their number, the sum of their probabilities, and how many were accepted.
        by_drafter: int64[2, 16], set to the drafted and the accepted nodes of each source bit.
    """
    for drafter in range(by_drafter.shape[1]):
        by_drafter[0, drafter] = 0
        by_drafter[1, drafter] = 0
    last = bins.shape[1] - 1
    scale = np.float32(bins.shape[1])
    for node in range(parents.shape[0]):
        tested = False
        accepted = False
        for place in visited:
            tested |= place == parents[node] + 1
            accepted |= place == node + 1
        if tested:
            place = min(np.int64(probs[node] * scale), last)
            bins[0, place] += 1.0
            bins[1, place] += probs[node]
            bins[2, place] += 1.0 if accepted else 0.0
        for drafter in range(by_drafter.shape[1]):
            if sources[node] >> drafter & 1:
                by_drafter[0, drafter] += 1
                by_drafter[1, drafter] += 1 if accepted else 0
