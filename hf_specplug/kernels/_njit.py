"""The decorators of all kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def njit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` on its first call and cache the machine code on disk.

    Later processes load a cached kernel in milliseconds. Without a writable cache folder (a
    read-only installation and no home folder) each process compiles the kernel again.

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


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy `function` into the kernels that call it instead of compiling it by itself.

    For helpers of a few lines whose arguments vary in type: a tuple of another length would be one
    more compilation.
    """
    inlined: Callable[..., Any] = numba.njit(function, inline="always", **_OPTIONS)
    return inlined


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `njit`, but floats may be added in any order, which vector instructions need.

    For helpers whose result need not be the same to the last bit on all machines.
    """
    order = {"reassoc", "nsz", "contract"}
    helper: Callable[..., Any] = numba.njit(function, fastmath=order, **_OPTIONS)
    return helper


# Python code calls the kernels, C code never does: without the wrapper for C, compilation takes
# 5 % less.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def _compiled(function: Callable[..., Any], cache: bool) -> Callable[..., Any]:
    compiled: Callable[..., Any] = numba.njit(function, cache=cache, **_OPTIONS)
    return compiled
