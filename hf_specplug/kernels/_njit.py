"""The one decorator all kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def njit(function: F) -> F:
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
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")  # type: ignore[no-any-return]
    except RuntimeError:  # numba found no folder that it may write to
        return numba.njit(function, nogil=True, error_model="numpy")  # type: ignore[no-any-return]
