"""The folder where numba caches the kernels' machine code, and a marker file for a full cache."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np

from hf_specplug.kernels._njit import njit


@njit
def _nothing():
    """A kernel that is never called: its cache folder is that of all kernels."""


def mark(names: Sequence[str]) -> Path | None:
    """The path of the marker file "all kernels of these drafters are compiled".

    The name depends on all that machine code depends on: releases, processor and source files.

    Returns:
        The path, or None if numba has no cache folder.
    """
    folder = getattr(getattr(_nothing, "stats", None), "cache_path", None)
    if folder is None:  # a read-only installation, or NUMBA_DISABLE_JIT
        return None
    of_drafters = hashlib.sha256(repr((_version(), *names)).encode()).hexdigest()[:16]
    return Path(folder) / f"hf_specplug-{of_drafters}.compiled"


@cache
def _version() -> tuple[object, ...]:
    files = sorted(Path(__file__).parent.glob("*.py"))
    sources = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    processor = getattr(numba.config, "CPU_NAME", "") or llvm.get_host_cpu_name()
    features = getattr(numba.config, "CPU_FEATURES", "") or llvm.get_host_cpu_features().flatten()
    releases = (numba.__version__, np.__version__, sys.implementation.cache_tag)
    return (*releases, processor, features, *sources)
