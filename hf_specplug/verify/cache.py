"""All knowledge of key-value caches: which can be rolled back, and how a draft is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

TREE, CHAIN, PLAIN = "tree", "chain", "plain"


_TAIL_ONLY = frozenset(
    {
        "DynamicIndexedLayer",
        "LinearAttentionLayer",  # convolutions; recurrent states are looked for after the prompt
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
    }
)
"""Layer types that can drop their last slots, but not pick among them. `is_croppable` does not tell
them: quantized layers have it, but `crop` leaves what was flushed to their quantized store."""


def decoder_cache(cache: Any) -> Any:
    """The cache that grows: of an encoder-decoder pair the decoder's own."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def rollback(cache: Any, max_length: int) -> tuple[str, str]:
    """What a cache can take back: (TREE, ""), or (CHAIN or PLAIN, the reason).

    TREE means that any slots of the last forward pass can be kept, CHAIN that only a tail can be
    dropped, PLAIN that nothing can. `max_length` is how long the text can get, in tokens.
    """
    cache = decoder_cache(cache)
    if not isinstance(cache, Cache):
        return PLAIN, f"a cache of type {type(cache).__name__} cannot be rolled back"
    if getattr(cache, "offloading", False):
        return PLAIN, "an offloaded cache is not rolled back"
    mode, reason = TREE, ""
    for layer in cache.layers:
        kind = type(layer)
        if kind in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer):
            continue
        if kind is StaticSlidingWindowLayer:
            if max_length > layer.max_cache_len:
                return PLAIN, "a static sliding-window cache overwrites what a rollback needs"
            continue
        if kind.__name__ == "DummyLayer":
            continue
        if kind.__name__ in _TAIL_ONLY:
            mode, reason = CHAIN, f"{kind.__name__} can only drop its last tokens"
            continue
        return PLAIN, f"{kind.__name__} cannot be rolled back"
    return mode, reason


def capacity(cache: Any) -> int:
    """Tokens that a filled cache can hold at most; huge if it grows."""
    cache = decoder_cache(cache)
    length = int(cache.get_seq_length())
    fixed = (layer for layer in cache.layers if isinstance(layer, StaticLayer))
    return min(  # others have slots for an image
        (layer.max_cache_len for layer in fixed if int(layer.get_seq_length()) == length),
        default=1 << 30,
    )


class Rollback:
    """Keeps the accepted slots of each forward pass in a cache and drops the rest.

    Args:
        cache: the filled cache, after the prompt; from here on it records what a rollback needs.

    Layers that do not grow with the text are left alone: they hold an image (cross-attention).
    """

    def __init__(self, cache: Any) -> None:
        self._cache = decoder_cache(cache)
        self._lengths = [_length(layer) for layer in self._cache.layers]
        self._text: list[Any] = []
        self._recording = [
            layer
            for layer in self._cache.layers
            if hasattr(layer, "record_past") and not layer.record_past
        ]
        self._cache.activate_past_recording()

    def can_roll_back(self) -> bool:
        """False if the prompt brought recurrent states that no layer type had announced."""
        for layer in self._cache.layers:
            linear = hasattr(layer, "conv_states")  # older releases do not say more of them
            if linear and not getattr(layer, "is_croppable", False):
                return False
        return True

    def keep(self, width: int, kept: Sequence[int]) -> None:
        """Of the last `width` slots keep those at `kept` (ascending, starting at 0), in order."""
        count = len(kept)
        indices = None
        if kept[-1] != count - 1:
            indices = torch.tensor(kept)
        if not self._text:
            self._text = [
                layer
                for layer, before in zip(self._cache.layers, self._lengths, strict=True)
                if before is None or _length(layer) == before + width
            ]
        for layer in self._text:
            if indices is not None and getattr(layer, "keys", None) is not None:
                indices = indices.to(layer.keys.device)
                _gather(layer, width, indices)
            if isinstance(layer, StaticLayer):
                _shorten(layer, width - count)
            else:
                layer.crop(count - width)

    def close(self) -> None:
        """Stop recording: the cache may outlive the call."""
        for layer in self._recording:
            layer.record_past = False


def _length(layer: Any) -> int | None:
    """The tokens that a layer of keys and values has seen; None for any other layer."""
    if isinstance(layer, (DynamicLayer, StaticLayer)):
        return int(layer.get_seq_length())
    return None


def _gather(layer: Any, width: int, indices: torch.Tensor) -> None:
    end = int(layer.cumulative_length) if isinstance(layer, StaticLayer) else layer.keys.shape[-2]
    for states in (layer.keys, layer.values):
        tail = states.narrow(-2, end - width, width)
        tail[..., : len(indices), :] = tail.index_select(-2, indices)


def _shorten(layer: Any, surplus: int) -> None:
    layer.cumulative_length.sub_(surplus)  # in place: compiled graphs hold its address
    if isinstance(layer, StaticSlidingWindowLayer):
        layer.cumulative_length_int -= surplus
