"""Conversations with images, as users hand them to `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)


def picture(seed: int, width: int = 56, height: int = 56) -> Image.Image:
    """Blocks of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def said(role: str, text: str, *images: Image.Image) -> dict[str, Any]:
    """One turn of a conversation."""
    shown = [{"type": "image", "image": image} for image in images]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def inputs(processor: Any, *conversation: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """What users hand to `generate`."""
    made = processor.apply_chat_template(
        list(conversation),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **settings,
    )
    return dict(made)


def joined(
    first: dict[str, Any], answer: torch.Tensor, turn: dict[str, Any], processor: Any
) -> dict[str, Any]:
    """A conversation whose first turns are in a kept cache: all tokens, new images only.

    Args:
        first: what was given for the earlier turns.
        answer: int64[1, n], them and what was said to them.
        turn: the next turn by itself; its first token is that of the beginning of a text.
    """
    count = answer.shape[1] - first["input_ids"].shape[1]
    ids = torch.cat([answer, turn["input_ids"][:, 1:]], dim=1)
    both = {**turn, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in first:  # images of earlier turns count as text: their pixels are not given again
            seen = torch.zeros_like(first[key]) if key == "mm_token_type_ids" else first[key]
            between = seen.new_zeros(1, count)
            both[key] = torch.cat([seen, between, turn[key][:, 1:]], dim=1)
    if "cross_attention_mask" in first:
        both["cross_attention_mask"] = _seen_images(processor, first, ids, turn)
    both.pop("labels", None)
    return both


def _seen_images(
    processor: Any, first: dict[str, Any], ids: torch.Tensor, turn: dict[str, Any]
) -> torch.Tensor:
    """Mllama's mask over all images of a conversation, as its processor makes it."""
    tiles = [
        int(given["aspect_ratio_mask"].sum()) for given in (first, turn) if "pixel_values" in given
    ]
    seen = get_cross_attention_token_mask(ids[0].tolist(), processor.image_token_id)
    dense = convert_sparse_cross_attention_mask_to_dense(
        [seen], [tiles], processor.image_processor.max_image_tiles, ids.shape[1]
    )
    return torch.from_numpy(dense)
