"""The k largest logits of each row, in one pass and without sorting the vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_specplug.kernels._njit import njit


def top_k(logits: Any, k: int) -> Any:
    """Find the k largest logits of each row.

    Args:
        logits: float32[n, V].
        k: how many, at least 1.

    Returns:
        (int32[n, k] ids, float32[n, k] values), the largest first; of equal values the lower id
        comes first. NaN and -inf are skipped: where fewer than k numbers are left, the id is -1.

    Example:
        >>> ids, _ = top_k(np.array([[0.1, 0.7, 0.7]], np.float32), 2)
        >>> ids.tolist()
        [[1, 2]]
    """
    ids = np.empty((len(logits), k), np.int32)
    values = np.empty((len(logits), k), np.float32)
    _fill(logits, ids, values)
    return ids, values


@njit
def _fill(logits, ids, values):
    k = ids.shape[1]
    for row in range(logits.shape[0]):
        for place in range(k):
            ids[row, place] = -1
            values[row, place] = -np.inf
        least = np.float32(-np.inf)
        for token in range(logits.shape[1]):
            value = logits[row, token]
            if value > least:
                place = k - 1
                while place > 0 and values[row, place - 1] < value:
                    values[row, place] = values[row, place - 1]
                    ids[row, place] = ids[row, place - 1]
                    place -= 1
                values[row, place] = value
                ids[row, place] = token
                least = values[row, k - 1]
