"""Causal convolutions over a draft tree: each node reads a window of its own ancestors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def windows(seen: NDArray[np.bool_], kept: int, size: int) -> NDArray[np.int64]:
    """The columns that a causal convolution reads at each node of a tree.

    Args:
        seen: bool[T, T], True where the column is the row's token or one of its ancestors.
        kept: number of columns kept from the text, which come before the nodes' own.
        size: size of the convolution in tokens; at most `kept` + 1.

    Returns:
        int64[T, size]: a node's last ancestors and itself, after as many kept columns as it lacks.

    Example:
        >>> windows(np.array([[True, False], [True, True]]), kept=2, size=3)
        array([[0, 1, 2],
               [1, 2, 3]])
    """
    width = len(seen)
    lines = np.empty((width, kept + width), np.int64)
    lines[:, :kept] = np.arange(-kept, 0)
    lines[:, kept:] = np.where(seen, np.arange(width), -kept - 1)
    lines.sort(axis=1)
    return lines[:, lines.shape[1] - size :] + kept


def last_columns(path: Sequence[int], kept: int, size: int) -> list[int]:
    """The last `size` columns of the text and a path: what a convolution keeps of them.

    Args:
        path: the nodes of the path, root first.
        kept: number of columns kept from the text, which come before the nodes' own.
    """
    line = [*range(kept), *(kept + node for node in path)]
    return line[len(line) - size :]


def convolve(
    columns: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    read: torch.Tensor,
) -> torch.Tensor:
    """A depthwise convolution over a window of its own for each node; without activation.

    Sums in float32 at least, as convolutions in shorter formats do, and rounds to the weight's
    dtype.

    Args:
        columns: [B, C, L].
        weight: [C, size].
        bias: [C]; or None.
        read: int64[T, size], the columns that each node reads, from `windows`.

    Returns:
        [B, C, T]
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    rows = columns.to(weight.dtype).transpose(1, 2).to(dtype)  # a token's channels side by side
    windowed = rows.index_select(1, read.flatten()).reshape(len(rows), *read.shape, -1)
    summed: torch.Tensor = (windowed * weight.to(dtype).t()).sum(2)
    if bias is not None:
        summed = summed + bias.to(dtype)
    return summed.to(weight.dtype).transpose(1, 2)
