"""Recurrent states: kept before a forward pass, and put back if some of its tokens are rejected."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from hf_specplug.hf.cache import compresses, decoder_cache, holds_state

_IN_PLACE = ("conv_states", "recurrent_states")
"""The states of a layer that a forward pass may change in place: tensors, or dicts of them."""


def may_hold_state(cache: Any) -> bool:
    """Whether a cache may hold recurrent states; what it holds shows after the prompt.

    Args:
        cache: as `generate` prepared it; None if the model makes its own cache.
    """
    cache = decoder_cache(cache)
    return not hasattr(cache, "layers") or holds_state(cache)


class KeptStates:
    """Keeps a cache as it is before a forward pass, and returns to it.

    A recurrent state sums up all tokens of a forward pass, so that none of them can be dropped.
    `keep` copies the states of all layers at once, to tensors that are allocated once. What a
    forward pass does not change in place is not copied. Keys and values are cropped, or held where
    a window drops old ones.

    Args:
        cache: the filled cache after prefill.
    """

    def __init__(self, cache: Any) -> None:
        cache = decoder_cache(cache)
        self._layers = [_Layer(part) for part in (*cache.layers, cache)]
        self._places = [place for layer in self._layers for place in layer.places()]
        self._copies: list[torch.Tensor] = []

    @property
    def known(self) -> bool:
        """Whether every layer made for states holds some, and not the model itself."""
        return all(layer.is_filled for layer in self._layers)

    def keep(self) -> None:
        """Keep the cache as it is now."""
        states = [container[key] for container, key in self._places]
        if not self._copies:
            self._copies = [torch.empty_like(state) for state in states]
        if states:
            torch._foreach_copy_(self._copies, states)
        for layer in self._layers:
            layer.keep()

    def put_back(self) -> None:
        """Return to the cache as `keep` found it."""
        for index, (container, key) in enumerate(self._places):
            container[key], self._copies[index] = self._copies[index], container[key]
        for layer in self._layers:
            layer.put_back()


class _Layer:
    """A layer of a cache, or the cache itself: what forward passes do not change in place."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._crops = isinstance(layer, DynamicLayer | StaticLayer)
        self._crops &= not isinstance(layer, DynamicSlidingWindowLayer) and not compresses(layer)
        self._length = 0
        self._attributes: dict[str, Any] = {}

    @property
    def is_filled(self) -> bool:
        made = any(hasattr(self._layer, name) for name in _IN_PLACE)
        return not made or any(True for _ in self.places())

    def places(self) -> Iterator[tuple[dict[Any, torch.Tensor], Any]]:
        """Where the layer has states that change in place: (a dict, the key in it)."""
        own = vars(self._layer)
        for name in _IN_PLACE:
            value = own.get(name)
            states = value if isinstance(value, dict) else own
            for key in list(value) if isinstance(value, dict) else [name]:
                if isinstance(states.get(key), torch.Tensor):
                    yield states, key

    def keep(self) -> None:
        apart = {*_IN_PLACE, "layers", *(("keys", "values") if self._crops else ())}
        self._length = int(self._layer.get_seq_length()) if self._crops else 0
        self._attributes = {
            name: copy.copy(value) if isinstance(value, dict | list) else value
            for name, value in vars(self._layer).items()
            if name not in apart
        }

    def put_back(self) -> None:
        layer = self._layer
        surplus = int(layer.get_seq_length()) - self._length if self._crops else 0
        if isinstance(layer, StaticLayer):
            layer.cumulative_length.sub_(surplus)  # in place: compiled graphs hold its address
        elif surplus:
            DynamicLayer.crop(layer, -surplus)
        vars(layer).update(self._attributes)
