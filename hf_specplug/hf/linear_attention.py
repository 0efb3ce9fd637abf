"""Linear attention over a draft tree: what tokens add to a state decays along their own path.

A token decays the state S [dk, dv] of its parent, and adds an update under its key. With S the
state before the tree, and G_t the sum of the logarithms of the decays over the path to t, the state
after node n is

    S_n = exp(G_n) S + sum_j exp(G_n - G_j) k_j u_j',    j over the path to n

so that no state is computed for any other node.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Recurrence:
    """What the nodes of a tree add to a state, from which the state after any node follows.

    Attributes:
        state: [B, H, dk, dv], the state before the tree.
        keys: [B, H, T, dk].
        updates: [B, H, T, dv], what each token adds to the state under its key.
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


def products(
    readers: torch.Tensor, key: torch.Tensor, total: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """The products of rows that read the state with the keys of the tokens they see.

    Args:
        readers: [B, H, R T, dk], R rows per token: first those of one kind, then of the next.
        key: [B, H, T, dk], which decay on their way to a reader.
        total: [B, H, T, 1 or dk], the sum of the logarithms of the decays.
        seen: bool[T, T], True where the column is the row's token or one of its ancestors.

    Returns:
        [B, H, R T, T], 0 where a token is not seen.
    """
    kinds = readers.shape[2] // len(seen)
    if total.shape[-1] == 1:
        lost = (total - total.transpose(-1, -2)).masked_fill(~seen, -torch.inf).exp()
        return (readers @ key.transpose(-1, -2)) * lost.repeat(1, 1, kinds, 1)
    lost = total[:, :, :, None] - total[:, :, None]
    keys = key[:, :, None] * lost.masked_fill(~seen[..., None], -torch.inf).exp()
    pairs = torch.stack(readers.chunk(kinds, dim=2), dim=-1)  # [B, H, T, dk, R]
    return torch.cat((keys @ pairs).unbind(-1), dim=2)
