"""The one decorator all kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def njit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` on its first call and keep the machine code on disk.

    A second process then loads the kernel in milliseconds. Where no folder can be written (a
    read-only installation without a home folder) the kernel is compiled again in each process.

    Example:
        >>> @njit
        ... def add(a, b):
        ...     return a + b
        >>> add(1, 2)
        3
    """
    try:
        return _compiled(function, cache=True)
    except RuntimeError:  # numba found no folder that it may write to
        return _compiled(function, cache=False)


# Without the wrapper for C, which nobody calls, the first call takes a twentieth less.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def _compiled(function: Callable[..., Any], cache: bool) -> Callable[..., Any]:
    compiled: Callable[..., Any] = numba.njit(function, cache=cache, **_OPTIONS)
    return compiled
