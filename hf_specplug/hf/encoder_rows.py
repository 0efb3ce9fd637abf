"""What the rows of a batch take from an encoder, while rows leave and come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

OF_AN_ENCODER = ("attention_mask", "encoder_outputs")
"""The arguments with one entry per row that `generate` derives from an encoder's text."""


class EncoderRows:
    """The encoder's outputs, its mask, and the keys and values of cross-attention.

    Args:
        source: the filled cache of the call; not changed.
        own: takes the place of its self-attention cache.
        inputs: the arguments of the forward pass.

    Attributes:
        cache: the cache for the forward pass.
    """

    def __init__(self, source: EncoderDecoderCache, own: Cache, inputs: Mapping[str, Any]) -> None:
        self._states = [(layer.keys, layer.values) for layer in source.cross_attention_cache.layers]
        self._inputs = {key: inputs[key] for key in OF_AN_ENCODER if key in inputs}
        cross = Cache(layers=[DynamicLayer() for _ in self._states])
        for index, (keys, values) in enumerate(self._states):
            cross.update(keys, values, index)
        self.cache = EncoderDecoderCache(own, cross)

    def select(self, rows: Sequence[int]) -> dict[str, Any]:
        """Continue with these rows of the call, in this order; returns their arguments."""
        chosen = torch.tensor(rows)
        for layer, states in zip(
            self.cache.cross_attention_cache.layers, self._states, strict=True
        ):
            layer.keys, layer.values = (_rows(part, chosen) for part in states)
        return {key: _rows(value, chosen) for key, value in self._inputs.items()}


def encoder_rows(source: Any, own: Cache, inputs: Mapping[str, Any]) -> EncoderRows | None:
    """The `EncoderRows` of a call; None for a decoder-only model."""
    return EncoderRows(source, own, inputs) if isinstance(source, EncoderDecoderCache) else None


def _rows(value: Any, chosen: torch.Tensor) -> Any:
    """These rows of a tensor, or of all tensors in a model's outputs."""
    if isinstance(value, torch.Tensor):
        return value.index_select(0, chosen.to(value.device))
    if isinstance(value, dict):
        return type(value)(**{key: _rows(part, chosen) for key, part in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(_rows(part, chosen) for part in value)
    return value
