"""Tree attention masks: each drafted token attends to the text, its ancestors and itself.

Layers differ in how much of the text they attend to. A model whose config has `layer_types` takes
one mask per type; any other model takes a single mask, as in transformers'
`create_masks_for_generate`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf.cache import decoder_cache
from hf_specplug.hf.reach import Reach, masks_needed, reaches


class TreeMasks:
    """Builds the 4D masks of one request.

    The columns of past tokens are nearly always True. They are written once, to the left of the
    tree's columns, in a buffer that is sliced to the length of the text. A step thus writes only
    the tree's own columns, whatever the length of the text.

    Args:
        config: the model's config.
        cache: the model's KV cache, filled with the prompt; says which slots a layer still has.
        dtype: the model's dtype.
        additive: False for bool masks (sdpa; True = attend), True for additive masks (eager
            attention; 0 = attend, else the lowest number of `dtype`).
        device: the device of the masks.
        prompt_mask: [1, prompt], 0 where the prompt is padding; or None.
        longest: maximum length of the text in tokens.
    """

    def __init__(
        self,
        config: Any,
        cache: Any,
        dtype: torch.dtype,
        additive: bool,
        device: torch.device,
        prompt_mask: torch.Tensor | None,
        longest: int,
    ) -> None:
        text = config.get_text_config(decoder=True)
        types = getattr(text, "layer_types", None) or []
        self._cache = decoder_cache(cache)
        self._layers = [
            (kind, None if reach == Reach() else reach, 0 if kind is None else types.index(kind))
            for kind, reach in masks_needed(config, longest).items()
        ]
        lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
        self._dtype = dtype if additive else torch.bool
        self._see: float | bool = 0.0 if additive else True
        self._hide: float | bool = lowest if additive else False
        self._device = device
        self._padded: torch.Tensor | None = None
        self._left = 0
        if prompt_mask is not None:
            hidden = prompt_mask[0] == 0
            if bool(hidden.any()):
                self._padded = hidden.to(device)
                self._left = int((~hidden).to(torch.uint8).argmax())
        self._buffers: dict[str | None, torch.Tensor] = {}
        # slices of arrays are cheaper than those of tensors
        self._in_arrays = self._padded is None and not additive and device.type == "cpu"

    def build(
        self, seen: NDArray[np.bool_], depths: NDArray[np.int64], past: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """One mask [1, 1, T, kv] per layer type, or a single one, for T tokens.

        Args:
            seen: bool[T, T], True where the column is the row's token or one of its ancestors.
            depths: int64[T], 0 at the root.
            past: number of slots before the tree.
        """
        masks = {
            kind: self._mask(kind, reach, layer, seen, depths, past)
            for kind, reach, layer in self._layers
        }
        if None in masks:
            return masks[None]
        return {str(kind): mask for kind, mask in masks.items()}

    def _mask(
        self,
        kind: str | None,
        reach: Reach | None,
        layer: int,
        seen: NDArray[np.bool_],
        depths: NDArray[np.int64],
        past: int,
    ) -> torch.Tensor:
        width = len(depths)
        length, offset = self._cache.get_mask_sizes(width, layer)
        buffer, middle = self._buffer(kind, width, past)
        begin = middle - past + offset
        limit = 0  # all tokens attend to the past slots from here on
        if reach is not None:
            slots = past + depths
            first = reach.first(slots, self._left)
            limit = min(past, int(first.max()))
            seen = seen & (slots[None, :] >= first[:, None])
        surplus = offset + length - past - width  # slots of a static cache that are not filled yet
        if self._in_arrays and limit <= offset and surplus <= 0:
            array = buffer.numpy()
            array[:width, middle : middle + width] = seen
            return torch.from_numpy(array[None, None, :width, begin : middle + width])
        buffer[:width, middle : middle + width] = self._values(seen)
        if limit > offset:
            columns = slice(begin, middle - past + limit)
            visible = np.arange(offset, limit)[None, :] >= first[:, None]
            buffer[:width, columns] = self._values(visible)
        mask = buffer[:width, begin : middle + width]
        if self._padded is not None or limit > offset or surplus > 0:
            mask = mask.clone()
        if self._padded is not None and offset < len(self._padded):
            hidden = self._padded[offset:]
            mask[:, : len(hidden)].masked_fill_(hidden[None, :], self._hide)
        if limit > offset:
            buffer[:width, columns] = self._see
        if surplus > 0:
            mask = torch.nn.functional.pad(mask, (0, surplus), value=self._hide)
        return mask[None, None]

    def _values(self, visible: NDArray[np.bool_]) -> torch.Tensor:
        block = torch.from_numpy(visible).to(self._device)
        if self._dtype is torch.bool:
            return block
        values = torch.zeros(block.shape, dtype=self._dtype, device=self._device)
        return values.masked_fill_(~block, self._hide)

    def _buffer(self, kind: str | None, width: int, past: int) -> tuple[torch.Tensor, int]:
        """(buffer, middle), with `past` or more columns before `middle` and `width` from there."""
        buffer = self._buffers.get(kind)
        if buffer is None or buffer.shape[0] < width or buffer.shape[1] - buffer.shape[0] < past:
            rows = max(width, 0 if buffer is None else buffer.shape[0])
            buffer = torch.full(
                (rows, 2 * past + 256 + rows), self._see, dtype=self._dtype, device=self._device
            )
            self._buffers[kind] = buffer
        return buffer, buffer.shape[1] - buffer.shape[0]


class SlotMasks:
    """The masks of `TreeMasks` for N rows over all slots of a `SlotCache`, computed on the device.

    Args:
        config, dtype, additive, device: those of `TreeMasks`.
        rows, capacity: those of the cache.

    Attributes:
        hidden: bool[rows, capacity], True where the prompt is padding; written in place.
        padding: int64[rows], number of padding slots on the left; written in place.
    """

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        additive: bool,
        device: torch.device,
        rows: int,
        capacity: int,
    ) -> None:
        self._reaches = reaches(config) or {}
        self._lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
        self._dtype = dtype if additive else torch.bool
        self._all = torch.arange(capacity, device=device)
        self.hidden = torch.zeros((rows, capacity), dtype=torch.bool, device=device)
        self.padding = torch.zeros(rows, dtype=torch.int64, device=device)

    def pad(self, prompt_mask: torch.Tensor | None) -> None:
        """Hide the padding of prompts: the slots where `prompt_mask` [N, n] is 0."""
        self.hidden.zero_()
        self.padding.zero_()
        if prompt_mask is not None:
            hidden = prompt_mask == 0
            rows, length = hidden.shape
            self.hidden[:rows, :length] = hidden
            self.padding[:rows] = (~hidden).to(torch.uint8).argmax(1)

    def continue_from(self, old: SlotMasks) -> None:
        """Hide what masks over as many rows and fewer slots hide."""
        self.hidden[:, : old.hidden.shape[1]] = old.hidden
        self.padding.copy_(old.padding)

    def build(
        self, seen: torch.Tensor, depths: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """One mask [N, 1, T, capacity] per layer type, or a single one; never synchronizes.

        Args:
            seen: bool[N, T, T], True where the column is the token or one of its ancestors.
            depths: int64[N, T], 0 at the root.
            slots: int64[N, T], the consecutive cache slots of the tokens.
        """
        masks = {
            kind: self._mask(reach, seen, depths, slots) for kind, reach in self._reaches.items()
        }
        if None in masks:
            return masks[None]
        return {str(kind): mask for kind, mask in masks.items()}

    def _mask(
        self, reach: Reach, seen: torch.Tensor, depths: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        rows, width = slots.shape
        roots = slots[:, :1]
        visible = ((self._all < roots) & ~self.hidden[:rows])[:, None].expand(-1, width, -1)
        places = roots + depths  # the slots of the tokens if their paths were the text
        first: torch.Tensor | None = None
        if reach.window is not None:
            first = places - reach.window + 1
        elif reach.chunk is not None:
            padding = self.padding[:rows, None]
            first = (places - padding) // reach.chunk * reach.chunk + padding
        if first is not None:
            visible = visible & (self._all >= first[..., None])
            seen = seen & (places[:, None] >= first[..., None])
        mask = visible.scatter(2, slots[:, None].expand(-1, width, -1), seen)
        if self._dtype is not torch.bool:
            values = torch.zeros(mask.shape, dtype=self._dtype, device=mask.device)
            mask = values.masked_fill(~mask, self._lowest)
        return mask[:, None]
