"""What changes from step to step in a forward pass at fixed addresses: one copy to the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


class Feed:
    """The inputs of N rows of one padded width, copied to the device as one array.

    The array is int64[N, width + 1, 2 + words], words = ceil(width / 64). The first entry of each
    row holds `past`. Each further entry holds a token: its id, its depth, and its row of `seen` as
    bits.

    Args:
        rows: N.
        width: tokens per row.
        device: where the forward pass reads them.

    Attributes:
        count: int64[width], 0 to width - 1.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        words = -(-width // 64)
        on_host = device.type == "cpu"
        shape = (rows, width + 1, 2 + words)
        self._host = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = self._host if on_host else self._host.to(device)
        self._array = self._host.numpy()
        self._bits = torch.arange(64, device=device)
        self.count = torch.arange(width, device=device)

    def write(
        self,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        past: NDArray[np.int64],
        places: Sequence[int],
    ) -> None:
        """Fill the array and copy it to the device.

        Padding tokens are copies of a root that attend only to the text and to themselves.

        Args:
            tokens: int64[n, T] of n <= N rows, the root first; T <= width.
            depths: int64[n, T], 0 at the root.
            seen: bool[n, T, T], True where the column is the token or one of its ancestors.
            past: int64[N], number of slots before the tokens of every row.
            places: the places of the n rows among the N; the other rows are padding.
        """
        entries, count = self._array[:, 1:], tokens.shape[1]
        self._array[:, 0, 0] = past
        entries[..., 0] = tokens[0, 0]
        entries[places, :, 0] = tokens[:, :1]
        entries[places, :count, 0] = tokens
        entries[..., 1] = 0
        entries[places, :count, 1] = depths
        rows, width, size = entries.shape
        visible = np.zeros((rows, width, 64 * size - 128), np.bool_)
        visible[:, range(width), range(width)] = True
        visible[places, :count, :count] = seen
        entries[..., 2:] = np.packbits(visible, axis=2, bitorder="little").view("<i8")
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def read(self) -> tuple[torch.Tensor, ...]:
        """Read the inputs on the device.

        Returns:
            (int64[N, width] tokens, int64[N, width] depths, bool[N, width, width] seen,
            int64[N, 1] past)
        """
        past, entries = self._device[:, 0, :1], self._device[:, 1:]
        bits = (entries[..., 2:, None] >> self._bits) & 1
        seen = bits.flatten(2)[..., : len(self.count)].to(torch.bool)
        return entries[..., 0], entries[..., 1], seen, past
