"""Tree attention masks of a batch: each row has its own tree after a text of its own length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf.reach import Reach, masks_needed


class RowMasks:
    """Builds the 4D masks of one batch, for a `RowCache`.

    Args:
        config: the model's config.
        dtype, additive, device: those of `TreeMasks`.
        prompt_mask: [N, prompt], 0 where the prompt is padding; or None.
        rows: N.
        longest: maximum length of the text in tokens.
    """

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        additive: bool,
        device: torch.device,
        prompt_mask: torch.Tensor | None,
        rows: int,
        longest: int,
    ) -> None:
        self._reaches = masks_needed(config, longest)
        self._lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
        self._dtype = dtype if additive else torch.bool
        self._device = device
        self._shown = np.ones((rows, 0), np.bool_)
        if prompt_mask is not None:
            self._shown = (prompt_mask != 0).cpu().numpy()
        self._left = np.zeros(rows, np.int64)  # padding slots on the left
        if self._shown.size:
            self._left = self._shown.argmax(axis=1)
        self._all = self._shown, self._left

    def build(
        self, seen: NDArray[np.bool_], depths: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """One mask [N, 1, T, kv] per layer type, or a single one; kv is the longest row plus T.

        Args:
            seen: bool[N, T, T], True where the column is the token or one of its ancestors.
            depths: int64[N, T], 0 at the root.
            lengths: int64[N], number of slots before each row's tree.
        """
        masks = {
            kind: self._mask(reach, seen, depths, lengths) for kind, reach in self._reaches.items()
        }
        if None in masks:
            return masks[None]
        return {str(kind): mask for kind, mask in masks.items()}

    def _mask(
        self,
        reach: Reach,
        seen: NDArray[np.bool_],
        depths: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> torch.Tensor:
        width = depths.shape[1]
        columns = np.arange(int(lengths.max()) + width)
        text = columns < lengths[:, None]
        text[:, : self._shown.shape[1]] &= self._shown
        visible = np.repeat(text[:, None], width, axis=1)
        if reach != Reach():
            slots = lengths[:, None] + depths  # those of the tokens if their paths were the text
            first = reach.first(slots, self._left[:, None])
            visible &= columns >= first[:, :, None]
            seen = seen & (slots[:, None, :] >= first[:, :, None])
        for row, start in enumerate(lengths.tolist()):
            visible[row, :, start : start + width] = seen[row]
        mask = torch.from_numpy(visible).to(self._device)
        if self._dtype is not torch.bool:
            values = torch.zeros(mask.shape, dtype=self._dtype, device=self._device)
            mask = values.masked_fill_(~mask, self._lowest)
        return mask[:, None]

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows of the prompt, in this order."""
        shown, left = self._all
        self._shown, self._left = shown[list(rows)], left[list(rows)]
