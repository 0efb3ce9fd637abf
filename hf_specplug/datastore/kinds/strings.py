"""Texts in an array of a datastore: a JSON list of strings as UTF-8 bytes, uint8[n]."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

STRINGS = "strings"
"""Name of the array."""

MAX_BYTES = 1 << 28
"""Bytes of the array at most."""


def pack_strings(strings: Iterable[str]) -> NDArray[np.uint8]:
    """The array of some strings, each once; those beyond `MAX_BYTES` are dropped.

    Example:
        >>> unpack_strings(pack_strings(["a", "b", "a"]))
        ['a', 'b']
    """
    kept, size = [], 2
    for string in dict.fromkeys(strings):
        piece = json.dumps(string)
        size += len(piece) + 2
        if size > MAX_BYTES:
            break
        kept.append(piece)
    return np.frombuffer(f"[{', '.join(kept)}]".encode(), np.uint8)


def unpack_strings(packed: NDArray[Any]) -> list[str]:
    """The strings of an array.

    Raises:
        StoreError: it is not what `pack_strings` returns.
    """
    try:
        if len(packed) > MAX_BYTES:
            raise ValueError(f"they have more than {MAX_BYTES:,} bytes")
        strings = json.loads(packed.tobytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"its strings cannot be read: {error}") from error
    if not isinstance(strings, list) or not all(isinstance(each, str) for each in strings):
        raise StoreError("its strings are not a JSON list of strings")
    return strings
