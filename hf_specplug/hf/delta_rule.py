"""The gated delta rule over a draft tree: one masked triangular solve, and no state per path.

The rule keeps a state S [dk, dv]. Token t decays it, and corrects what it holds for key k_t:

    S_t = exp(g_t) S_p + k_t u_t',    u_t = beta_t (v_t - k_t' exp(g_t) S_p),    o_t = q_t' S_t

where p is the token before t, in a tree its parent. With S the state before the tree, G_t the sum
of g over the path to t, and j over the ancestors of t:

    u_t = beta_t (v_t - k_t' exp(G_t) S - sum_j (k_t' exp(G_t - G_j) k_j) u_j')

These equations are linear and triangular, because parents come before children; siblings do not see
each other.

Gated DeltaNet (arXiv 2412.06464, section 3.3) solves these equations for a chain, chunk by chunk.
The decay is one number per head there, and one per channel of the key in Kimi Delta Attention
(arXiv 2510.26692, section 3).
"""

from __future__ import annotations

import torch

from hf_specplug.hf.linear_attention import Recurrence, products

_NORM_EPS = 1e-6  # what the model files and their kernels add to a squared norm


def solve(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    seen: torch.Tensor,
    normalize: bool = False,
) -> tuple[torch.Tensor, Recurrence]:
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
        (outputs [B, T, H, dv], what `Recurrence.after` needs)
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
    by_key, by_query = products(readers, key, total, seen).chunk(2, dim=2)
    # the solver reads what is below the diagonal only
    updates = torch.linalg.solve_triangular(
        beta * by_key, beta * (value - old[:, :, :width]), upper=False, unitriangular=True
    )
    outputs = old[:, :, width:] + by_query @ updates
    return outputs.transpose(1, 2), Recurrence(state, key, updates, total)
