"""The projection of hidden states to the short vectors that a dense datastore indexes.

DReSD (Gritta et al. 2025, arXiv 2502.15572): states are z-scored, projected to their first 64
principal components and normalised, so that inner products are cosines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

DIMS = 64
"""Principal components that are kept, as in the paper."""

_BLOCK = 1 << 16  # rows at a time: a float64 copy of all states would be large
_MIN_DEVIATION = 1e-6  # of the largest one: dimensions that vary less are ignored

Float32 = NDArray[np.float32]


def fit_projection(states: NDArray[Any], dims: int = DIMS) -> Float32:
    """Fit the projection to a sample of states: z-scores, then principal components.

    Args:
        states: float[n, width]; rows that are not finite are ignored.
        dims: number of components.

    Returns:
        float32[width + 1, min(dims, width)]: the components, and in the last row the offset.

    Raises:
        StoreError: there are fewer than two finite states.

    Example:
        >>> fit_projection(np.eye(4, dtype=np.float32), dims=2).shape
        (5, 2)
    """
    states = np.asarray(states, np.float32)
    states = states[np.isfinite(states).all(axis=1)]
    if len(states) < 2:
        raise StoreError("too few tokens for a dense datastore: it needs at least two")
    mean = states.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(states), _BLOCK // 16):
        centred = states[start : start + _BLOCK // 16] - mean
        scatter += centred.T @ centred
    deviation = np.sqrt(np.diag(scatter) / len(states))
    varies = deviation > _MIN_DEVIATION * deviation.max()
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    _, directions = np.linalg.eigh(scatter * np.outer(scale, scale))
    kept = directions[:, ::-1][:, :dims] * scale[:, None]
    return np.vstack([kept, -mean @ kept]).astype(np.float32)


def project(states: NDArray[Any], projection: Float32) -> Float32:
    """Project states and normalise the result.

    Args:
        states: float[n, width].
        projection: float32[width + 1, dims], from `fit_projection`.

    Returns:
        float32[n, dims] of length 1; 0 where a state is not finite.
    """
    vectors = np.empty((len(states), projection.shape[1]), np.float32)
    for start in range(0, len(states), _BLOCK):
        part = slice(start, start + _BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):
            raw = np.asarray(states[part], np.float32) @ projection[:-1] + projection[-1]
            length = np.linalg.norm(raw, axis=1, keepdims=True)
            usable = np.isfinite(length) & (length > 0.0)
            vectors[part] = np.where(usable, raw / np.where(usable, length, 1.0), 0.0)
    return vectors
