"""Arrays that stand for those of absent drafters: a kernel is compiled for each type of array."""

from __future__ import annotations

from typing import Any

import numpy as np


def writable(kind: Any, dims: int = 1) -> Any:
    """An array of this dtype and number of dimensions."""
    return np.zeros((1,) * dims, kind)


def read_only(kind: Any) -> Any:
    """An empty array, read-only as those of a store, a `Context` or a `Step`."""
    array = np.zeros(0, kind)
    array.flags.writeable = False
    return array
