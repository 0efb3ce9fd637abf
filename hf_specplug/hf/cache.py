"""KV caches: which of them can be rolled back, and how the accepted slots are kept."""

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

from hf_specplug.hf.plan import CHAIN, PLAIN, TREE

GROWING = frozenset({DynamicLayer, DynamicSlidingWindowLayer})
FIXED = frozenset({StaticLayer, StaticSlidingWindowLayer})
"""The layer types that hold keys and values only."""

_TAIL_ONLY = frozenset(
    {
        "LinearAttentionLayer",  # convolutions; recurrent states are detected after prefill
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
    }
)
"""Layer types that can drop their last slots but cannot select among them.

`is_croppable` does not identify them: quantized layers have it too, but their `crop` leaves the
tokens that were flushed to the quantized store."""


def decoder_cache(cache: Any) -> Any:
    """The cache that grows: the decoder's own cache of an encoder-decoder pair, else `cache`."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def rollback(cache: Any) -> tuple[str, str]:
    """How a cache can be rolled back: (TREE, ""), or (CHAIN or PLAIN, the reason).

    TREE: any slots of the last forward pass can be kept. CHAIN: only the last slots can be dropped.
    PLAIN: nothing can be dropped.
    """
    cache = decoder_cache(cache)
    if not isinstance(cache, Cache):
        return PLAIN, f"a cache of type {type(cache).__name__} cannot be rolled back"
    if getattr(cache, "offloading", False):
        return PLAIN, "an offloaded cache is not rolled back"
    mode, reason = TREE, ""
    for layer in cache.layers:
        kind = type(layer)
        if kind in GROWING | FIXED:
            continue
        if kind.__name__ in ("DynamicIndexedLayer", "DummyLayer"):
            continue
        if kind.__name__ in _TAIL_ONLY or compresses(layer):
            mode, reason = CHAIN, f"{kind.__name__} can only drop its last tokens"
            continue
        return PLAIN, f"{kind.__name__} cannot be rolled back"
    return mode, reason


def capacity(cache: Any) -> int:
    """The maximum number of tokens that a filled cache can hold; 1 << 30 if it grows."""
    cache = decoder_cache(cache)
    length = int(cache.get_seq_length())
    fixed = (layer for layer in cache.layers if isinstance(layer, StaticLayer))
    return min(  # layers of another length hold an image
        (layer.max_cache_len for layer in fixed if int(layer.get_seq_length()) == length),
        default=1 << 30,
    )


def overwrites(cache: Any, max_length: int) -> bool:
    """Whether a text of `max_length` tokens exceeds a static sliding window.

    Such a layer then overwrites its slots and cannot be rolled back.
    """
    layers = decoder_cache(cache).layers
    windows = [layer for layer in layers if isinstance(layer, StaticSlidingWindowLayer)]
    return any(max_length > layer.max_cache_len for layer in windows)


def growing_copy(cache: Any, length: int) -> Cache:
    """Copy a cache of `length` tokens to a cache that can be rolled back.

    Slots that a sliding window has dropped are zero; no later token attends to them.
    `append_slots` copies new slots back.
    """
    layers = []
    for old in cache.layers:
        layers.append(DynamicLayer())
        if getattr(old, "keys", None) is not None:
            layers[-1].update(*(_whole(part, length) for part in (old.keys, old.values)))
    return Cache(layers=layers)


def _whole(states: torch.Tensor, length: int) -> torch.Tensor:
    """[rows, heads, length, D]: the held states, padded with zeros on the left."""
    held = min(states.shape[2], length)
    whole = states.new_zeros((*states.shape[:2], length, states.shape[3]))
    whole[:, :, length - held :] = states[:, :, :held]
    return whole


def append_slots(source: Any, target: Any, start: int, end: int) -> None:
    """Append the slots from `start` to `end` (exclusive) of one cache to another."""
    for index, layer in enumerate(source.layers):
        if end > start and layer.keys is not None:
            decoder_cache(target).update(
                layer.keys[:, :, start:end], layer.values[:, :, start:end], index
            )


def compresses(layer: Any) -> bool:
    """Whether a layer holds more than keys and values: DeepSeek V4's hold compressed tokens."""
    return type(layer).__name__ in ("DeepseekV4HCACache", "DeepseekV4CSACache")


def holds_state(cache: Any) -> bool:
    """Whether prefill left states in a cache that cannot be cropped; no layer type announces them.

    MiniMax holds them beside the layers.
    """
    cache = decoder_cache(cache)
    return hasattr(cache, "linear_cache") or any(
        compresses(layer)
        # older releases give no other sign for layers with convolutions
        or (hasattr(layer, "conv_states") and not getattr(layer, "is_croppable", False))
        for layer in cache.layers
    )


class Rollback:
    """Keeps the accepted slots of each forward pass in a cache and drops the rest.

    Args:
        cache: the filled cache after prefill. From then on it records what a rollback needs.

    Layers that do not grow with the text hold an image (cross-attention) and are left unchanged.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = decoder_cache(cache)
        self._lengths = [_length(layer) for layer in self._cache.layers]
        self._text: list[_Layer] = []
        self._recording = [
            layer
            for layer in self._cache.layers
            if hasattr(layer, "record_past") and not layer.record_past
        ]
        self._cache.activate_past_recording()

    def keep(self, width: int, kept: Sequence[int]) -> None:
        """Keep some of the last `width` slots, in order, and drop the others.

        Args:
            width: number of slots that the last forward pass filled.
            kept: ascending indices of the slots to keep, starting at 0.
        """
        count = len(kept)
        if not self._text:
            self._text = [
                _Layer(layer)
                for layer, before in zip(self._cache.layers, self._lengths, strict=True)
                if before is None or _length(layer) == before + width
            ]
        first = next((place for place in range(count) if kept[place] != place), count)
        moved = _Slots(kept[first:], width, first)
        for layer in self._text:
            if first < count:
                layer.move(moved)
            layer.drop(width - count)

    def close(self) -> None:
        """Stop recording, because the cache may outlive the call."""
        for layer in self._recording:
            layer.record_past = False


def _length(layer: Any) -> int | None:
    """The number of tokens that a layer of keys and values has seen; None for other layers."""
    if isinstance(layer, (DynamicLayer, StaticLayer)):
        return int(layer.get_seq_length())
    return None


class _Layer:
    """A layer that grows with the text, and what is known of it since its first rollback."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._static = isinstance(layer, StaticLayer)
        self._sliding = isinstance(layer, StaticSlidingWindowLayer)
        self._states = [
            (name, dim)
            for name, dim in _STATES
            if getattr(layer, "keys", None) is not None and getattr(layer, name, None) is not None
        ]

    def move(self, slots: _Slots) -> None:
        """Move the entries of some slots to the first place that one of them is not at."""
        for name, dim in self._states:
            states = getattr(self._layer, name)
            end = states.shape[dim]
            if self._static and dim == -2:
                end = int(self._layer.cumulative_length)
            _move(states, dim, slots.before(end, states.device))

    def drop(self, surplus: int) -> None:
        """Drop the last slots."""
        layer = self._layer
        if not self._static:
            layer.crop(-surplus)
            return
        layer.cumulative_length.sub_(surplus)  # in place: compiled graphs hold its address
        if self._sliding:
            layer.cumulative_length_int -= surplus


class _Slots:
    """The slots of a forward pass to move, and where to.

    Args:
        kept: their indices among the last `width` slots.
        first: the index of the place to move them to.
    """

    def __init__(self, kept: Sequence[int], width: int, first: int) -> None:
        self._kept, self._width, self._first = kept, width, first
        self._found: dict[tuple[int, torch.device], torch.Tensor] = {}

    def before(self, end: int, device: torch.device) -> torch.Tensor:
        """int64[2, n], the slots to move and those to move to, if `end` slots are filled."""
        if (end, device) not in self._found:
            begin = end - self._width
            places = range(self._first, self._first + len(self._kept))
            slots = [[begin + place for place in row] for row in (self._kept, places)]
            self._found[end, device] = torch.tensor(slots, device=device)
        return self._found[end, device]


_STATES = (("keys", -2), ("values", -2), ("indexer_keys", 1), ("indexer_position_ids", -1))
"""The tensors of layers that hold one entry per slot, and the dimension of the slots."""


def _move(states: torch.Tensor, dim: int, slots: torch.Tensor) -> None:
    """Move the entries at `slots[0]` along `dim` to `slots[1]`."""
    states.index_copy_(dim, slots[1], states.index_select(dim, slots[0]))
