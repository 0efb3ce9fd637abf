"""How far back each layer type attends, read from the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NO_MASK = frozenset({"linear_attention", "mlp", "moe"})
_RULES = ("hybrid", "full_attention", "sliding_attention", "chunked_attention", "indexed_attention")


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a layer type attends: to all tokens, a sliding window, or its own chunk.

    Attributes:
        window: size of the sliding window in tokens; None if there is none.
        chunk: size of a chunk of the text in tokens; None if there are no chunks.
    """

    window: int | None = None
    chunk: int | None = None

    def first(
        self, slots: NDArray[np.int64], padding: int | NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The first slot that each of `slots` attends to.

        Args:
            slots: int64[...], positions in the cache.
            padding: number of padding slots on the left; may be an array, one number per row.

        Returns:
            int64[...]
        """
        if self.window is not None:
            return np.maximum(slots - self.window + 1, 0)
        if self.chunk is not None:
            return (slots - padding) // self.chunk * self.chunk + padding
        return np.zeros_like(slots)


def reaches(config: Any) -> dict[str | None, Reach] | None:
    """The attention reach of each layer type (key None: one mask for all layers).

    Layers without attention take no mask, and are left out. None if the model has another layer
    type that takes no tree mask, a convolution for example.
    """
    config = config.get_text_config(decoder=True)
    try:
        window = getattr(config, "sliding_window", None)
        chunk = getattr(config, "attention_chunk_size", None)
    except RuntimeError:  # the value differs from layer to layer
        return None
    types = getattr(config, "layer_types", None)
    if types is None:
        if window is not None:
            return {None: Reach(window=window)}
        return {None: Reach(chunk=chunk)}
    kinds = dict.fromkeys(kind for kind in types if kind not in _NO_MASK)
    if not set(kinds) <= set(_RULES):
        return None
    known = {
        "full_attention": Reach(),
        "hybrid": Reach(),  # beside a recurrence
        "sliding_attention": Reach(window=window),
        "chunked_attention": Reach(chunk=chunk),
        "indexed_attention": Reach(),  # while the index selects all keys
    }
    found: dict[str | None, Reach] = {kind: known[kind] for kind in kinds}
    if len(kinds) < len(dict.fromkeys(types)) and any(reach != Reach() for reach in found.values()):
        return None  # one mask serves all layers only if it is that of all layers that take one
    return found


def masks_needed(config: Any, longest: int) -> dict[str | None, Reach]:
    """The reaches that differ in a text of at most `longest` tokens.

    If no window or chunk is shorter than the text, one full reach serves all layers.
    """
    found = reaches(config) or {}
    limits = [reach.window or reach.chunk for reach in found.values()]
    if all(limit is None or limit >= longest for limit in limits):
        return {None: Reach()}
    return found
