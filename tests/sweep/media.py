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


def _queried(
    *lead: int, placeholders: int = 4, **extra: torch.Tensor
) -> Callable[[Inputs], Inputs]:
    """A picture that becomes as many vectors as there are queries."""

    def inputs(text: Inputs) -> Inputs:
        ids = torch.cat([torch.full((1, placeholders), 120), text["input_ids"]], 1)
        pixels = _noise(*lead, 3, 16, 16)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels,
            **extra,
        }

    return inputs


def _idefics(text: Inputs) -> Inputs:
    seen = torch.ones(*text["input_ids"].shape, 1, dtype=torch.long)
    return {**text, "pixel_values": _noise(1, 1, 3, 16, 16), "image_attention_mask": seen}


def _pix2struct(_: Inputs) -> Inputs:
    places = torch.tensor([[[row, column] for row in (1, 2) for column in (1, 2, 3)]]).float()
    patches = torch.cat([places, _noise(1, 6, 32)], -1)
    return {"flattened_patches": patches, "attention_mask": torch.ones(1, 6)}


def _udop(text: Inputs) -> Inputs:
    boxes = torch.rand(1, text["input_ids"].shape[1], 4, generator=torch.Generator().manual_seed(4))
    return {**text, "bbox": boxes}


_FEW = torch.tensor([[5, 9, 7, 5]])

NEEDED: dict[str, Callable[[Inputs], Inputs]] = {
    "blip": _image,
    "idefics": _idefics,
    "blip-2": _queried(1),
    "instructblip": _queried(1, qformer_input_ids=_FEW),
    "instructblipvideo": _queried(1, 2, placeholders=8, qformer_input_ids=_FEW),
    "kosmos-2": _placed(4),
    "pix2struct": _pix2struct,
    "udop": _udop,
}
"""Families whose `generate` does not run without; how it is added to a text."""


def _gemma4(_: Any) -> Inputs:
    """A grid of patches, of which three by three are pooled to one."""
    places = torch.tensor([[[column, row] for row in range(6) for column in range(6)]])
    return {"pixel_values": torch.sigmoid(_noise(1, 36, 48)), "image_position_ids": places}


def _lfm2_vl(_: Any) -> Inputs:
    return {
        "pixel_values": _noise(1, 16, 48),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }


def _granite_docling(_: Any) -> Inputs:
    seen = torch.ones(1, 1, dtype=torch.bool)
    return {"pixel_values": _noise(1, 1, 3, 16, 16), "pixel_attention_mask": seen}


def _two_resolutions(_: Any) -> Inputs:
    return {"pixel_values": _noise(1, 3, 16, 16), "high_res_pixel_values": _noise(1, 3, 16, 16)}


def _fuyu(_: Any) -> Inputs:
    return {"pixel_values": _noise(1, 4, 48)}


def _mllama(_: Any) -> Inputs:
    """One tile of four."""
    mask = torch.tensor([[[1, 0, 0, 0]]])
    seen = torch.zeros(1, 24, 1, 4, dtype=torch.long)
    seen[:, 3:, :, 0] = 1
    return {
        "pixel_values": _noise(1, 1, 4, 3, 16, 16),
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": mask,
        "cross_attention_mask": seen,
    }


PICTURES: dict[str, Callable[[Any], Inputs]] = {
    "deepseek_vl_hybrid": _two_resolutions,
    "fuyu": _fuyu,
    "gemma4": _gemma4,
    "gemma4_unified": _gemma4,
    "granite_docling": _granite_docling,
    "lfm2_vl": _lfm2_vl,
    "mllama": _mllama,
}
"""How a family takes a picture, beside its placeholders."""
