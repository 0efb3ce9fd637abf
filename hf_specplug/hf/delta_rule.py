"""The gated delta rule over a draft tree: one masked triangular solve, and no state per path.

The rule keeps a state S [dk, dv]. Token t decays it, and corrects what it holds for key k_t:

    S_t = exp(g_t) S_p + k_t u_t',    u_t = beta_t (v_t - k_t' exp(g_t) S_p),    o_t = q_t' S_t

where p is the token before t, in a tree its parent. With S the state before the tree, G_t the sum
of g over the path to t, and j over the ancestors of t:

    u_t = beta_t (v_t - k_t' exp(G_t) S - sum_j (k_t' exp(G_t - G_j) k_j) u_j')

These equations are linear and triangular, because parents come before children; siblings do not see
each other. The state after any node n follows from their solution:

    S_n = exp(G_n) S + sum_j exp(G_n - G_j) k_j u_j',    j over the path to n

Gated DeltaNet (arXiv 2412.06464, section 3.3) solves these equations for a chain, chunk by chunk.
The decay is one number per head there, and one per channel of the key in Kimi Delta Attention
(arXiv 2510.26692, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_NORM_EPS = 1e-6  # what the model files and their kernels add to a squared norm


@dataclass(frozen=True, slots=True)
class Solution:
    """The solved equations of a tree, from which the state after any of its nodes follows.

    Attributes:
        state: [B, H, dk, dv], the state before the tree.
        keys: [B, H, T, dk].
        updates: [B, H, T, dv], u in the equations.
        decay: [B, H, T, 1 or dk], the sum of the logarithms of the decays from the root on.
    """

    state: torch.Tensor
    keys: torch.Tensor
    updates: torch.Tensor
    decay: torch.Tensor

    def after(self, path: torch.Tensor) -> torch.Tensor:
        """The state [B, H, dk, dv] after the nodes of a path.

        Args:
            path: int64[n], their indices, root first.
        """
        decay = self.decay.index_select(2, path)
        last = decay[:, :, -1:]
        keys = self.keys.index_select(2, path) * (last - decay).exp()
        state = self.state * last.exp().transpose(-1, -2)
        return state + keys.transpose(-1, -2) @ self.updates.index_select(2, path)


def solve(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    seen: torch.Tensor,
    normalize: bool = False,
) -> tuple[torch.Tensor, Solution]:
    """The gated delta rule at each node of a tree.

    Computed in the dtype of `state`, as in the model files, and at least in float32.

    Args:
        query, key: [B, T, Hk, dk]; each head serves H / Hk consecutive heads of `value`.
        value: [B, T, H, dv].
        decay: [B, T, H] or [B, T, H, dk], the logarithm of each token's decay; at most 0.
        beta: [B, T, H].
        state: [B, H, dk, dv], the state before the tree.
        seen: bool[T, T], True where the column is the row's token or one of its ancestors.
        normalize: whether queries and keys are divided by their norms.

    Returns:
        (outputs [B, T, H, dv], what `Solution.after` needs)
    """
    dtype = torch.promote_types(state.dtype, torch.float32)
    state = state.to(dtype)
    query, key, value, beta = (
        x.to(dtype).transpose(1, 2) for x in (query, key, value, beta[..., None])
    )
    if normalize:
        query, key = (
            x * (x.square().sum(-1, keepdim=True) + _NORM_EPS).rsqrt() for x in (query, key)
        )
    if (shared := value.shape[1] // key.shape[1]) > 1:
        query, key = (x.repeat_interleave(shared, dim=1) for x in (query, key))
    width = key.shape[2]
    decay = decay if decay.ndim == 4 else decay[..., None]
    total = seen.to(dtype) @ decay.to(dtype).transpose(1, 2)

    readers = torch.cat([key, query * key.shape[-1] ** -0.5], dim=2)  # both read the same state
    old = (readers * total.exp().repeat(1, 1, 2, 1)) @ state
    by_key, by_query = _products(readers, key, total, seen).chunk(2, dim=2)
    # the solver reads what is below the diagonal only
    updates = torch.linalg.solve_triangular(
        beta * by_key, beta * (value - old[:, :, :width]), upper=False, unitriangular=True
    )
    outputs = old[:, :, width:] + by_query @ updates
    return outputs.transpose(1, 2), Solution(state, key, updates, total)


def _products(
    readers: torch.Tensor, key: torch.Tensor, total: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """[B, H, 2T, T]: the products of two rows of readers per token with the keys they see.

    Args:
        readers: [B, H, 2T, dk].
        key: [B, H, T, dk], which decay on their way to a reader.
        total: [B, H, T, 1 or dk], the sum of the logarithms of the decays.
        seen: bool[T, T].
    """
    if total.shape[-1] == 1:
        lost = (total - total.transpose(-1, -2)).masked_fill(~seen, -torch.inf).exp()
        return (readers @ key.transpose(-1, -2)) * lost.repeat(1, 1, 2, 1)
    lost = total[:, :, :, None] - total[:, :, None]
    keys = key[:, :, None] * lost.masked_fill(~seen[..., None], -torch.inf).exp()
    pairs = torch.stack(readers.chunk(2, dim=2), dim=-1)  # [B, H, T, dk, 2]
    return torch.cat((keys @ pairs).unbind(-1), dim=2)


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
