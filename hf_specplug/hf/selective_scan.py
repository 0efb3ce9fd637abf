"""Mamba2's recurrence over a draft tree, without a state per node.

Token t adds dt_t x_t to the state under the key B_t, the state decays by exp(dt_t A), and C_t reads
it (Mamba2: arXiv 2405.21060, section 2). With a mask of ancestors this is a tree (STree, arXiv
2505.14969). Unlike the gated delta rule, what a token adds does not depend on the state.
"""

from __future__ import annotations

import torch

from hf_specplug.hf.linear_attention import Recurrence, products


def scan(
    values: torch.Tensor,
    dt: torch.Tensor,
    rate: torch.Tensor,
    key: torch.Tensor,
    query: torch.Tensor,
    state: torch.Tensor,
    seen: torch.Tensor,
) -> tuple[torch.Tensor, Recurrence]:
    """The outputs at each node of a tree.

    Computed in the dtype of `state`, as in the model files, and at least in float32.

    Args:
        values: [B, T, H, dv], x above.
        dt: [B, T, H], the step sizes; at least 0.
        rate: [H], A above; negative.
        key, query: [B, T, groups, dk], B and C above; each serves H / groups consecutive heads.
        state: [B, H, dk, dv], the state before the tree.
        seen: bool[T, T], True where the column is the row's token or one of its ancestors.

    Returns:
        (outputs [B, T, H, dv], what `Recurrence.after` needs)
    """
    dtype = torch.promote_types(state.dtype, torch.float32)
    values, key, query, dt = (
        x.to(dtype).transpose(1, 2) for x in (values, key, query, dt[..., None])
    )
    shared = values.shape[1] // key.shape[1]
    key, query = (x.repeat_interleave(shared, dim=1) for x in (key, query))
    total = seen.to(dtype) @ (dt * rate.to(dtype)[:, None, None])
    updates = dt * values
    outputs = (query * total.exp()) @ state.to(dtype) + products(query, key, total, seen) @ updates
    return outputs.transpose(1, 2), Recurrence(state.to(dtype), key, updates, total)
