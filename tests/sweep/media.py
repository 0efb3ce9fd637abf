"""What single families need beside text: shapes and names that are not found by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Inputs = dict[str, Any]


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _image(text: Inputs) -> Inputs:
    return {**text, "pixel_values": _noise(1, 3, 16, 16)}


def _placed(count: int) -> Callable[[Inputs], Inputs]:
    """A picture's vectors at given places of the text."""

    def inputs(text: Inputs) -> Inputs:
        where = torch.zeros_like(text["input_ids"])
        where[:, 2 : 2 + count] = 1
        return {**_image(text), "image_embeds_position_mask": where}

    return inputs


def _with_qformer(*lead: int) -> Callable[[Inputs], Inputs]:
    def inputs(text: Inputs) -> Inputs:
        few = text["input_ids"][:, :6]
        return {**text, "pixel_values": _noise(*lead, 3, 16, 16), "qformer_input_ids": few}

    return inputs


def _idefics(text: Inputs) -> Inputs:
    seen = torch.ones(*text["input_ids"].shape, 1, dtype=torch.long)
    return {**text, "pixel_values": _noise(1, 1, 3, 16, 16), "image_attention_mask": seen}


def _pix2struct(_: Inputs) -> Inputs:
    places = torch.tensor([[[row, column] for row in (1, 2) for column in (1, 2, 3)]]).float()
    patches = torch.cat([places, _noise(1, 6, 3 * 4 * 4)], -1)
    return {"flattened_patches": patches, "attention_mask": torch.ones(1, 6)}


def _udop(text: Inputs) -> Inputs:
    boxes = torch.rand(1, text["input_ids"].shape[1], 4, generator=torch.Generator().manual_seed(4))
    return {**text, "bbox": boxes}


NEEDED: dict[str, Callable[[Inputs], Inputs]] = {
    "blip": _image,
    "idefics": _idefics,
    "instructblip": _with_qformer(1),
    "instructblipvideo": _with_qformer(1, 2),
    "kosmos-2": _placed(4),
    "pix2struct": _pix2struct,
    "udop": _udop,
}
"""Families whose `generate` does not run without; how it is added to a text."""

NONE: frozenset[str] = frozenset()

PICTURES: dict[str, Callable[[Any], Inputs]] = {}
