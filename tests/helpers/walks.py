"""Random trees and plain walks over their paths: what a pass over a tree must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def random_parents(count: int, seed: int, near: int = 64) -> list[int]:
    """The parent of each of `count` nodes, root first (-1); one of the last `near` before it."""
    rng = np.random.default_rng(seed)
    return [-1, *(int(rng.integers(max(0, node - near), node)) for node in range(1, count))]


def paths(parents: Sequence[int]) -> list[list[int]]:
    """The nodes from the root to each node."""
    found: list[list[int]] = []
    for node, parent in enumerate(parents):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


def seen(parents: Sequence[int]) -> NDArray[np.bool_]:
    """bool[T, T], True where the column is the row's node or one of its ancestors."""
    mask = np.zeros((len(parents), len(parents)), bool)
    for node, path in enumerate(paths(parents)):
        mask[node, path] = True
    return mask


def delta_rule(
    path: Sequence[int],
    query: Float64,
    key: Float64,
    value: Float64,
    decay: Float64,
    beta: Float64,
    state: Float64,
) -> tuple[Float64, Float64]:
    """The gated delta rule of one head, token by token along a path.

    Args:
        query, key: [T, dk].
        value: [T, dv].
        decay: [T, 1 or dk].
        beta: [T].
        state: [dk, dv].

    Returns:
        (the output [dv] at the last node, the state [dk, dv] after it)
    """
    output = np.zeros(value.shape[1])
    for node in path:
        state = np.exp(decay[node])[:, None] * state
        correction = beta[node] * (value[node] - key[node] @ state)
        state = state + np.outer(key[node], correction)
        output = query[node] @ state
    return output, state
