"""What is learned across calls, in a safetensors file: arrays by part and key."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hf_specplug.errors import StateError

_FORMAT = "hf_specplug drafter state 1"


def save(path: str | os.PathLike[str], states: dict[str, dict[str, NDArray[Any]]]) -> None:
    """Write `states[part][key]`, whole or not at all."""
    tensors = {
        f"{part}/{key}": np.ascontiguousarray(array)
        for part, arrays in states.items()
        for key, array in arrays.items()
    }
    partial = f"{os.fspath(path)}.partial"
    save_file(tensors, partial, metadata={"format": _FORMAT})
    os.replace(partial, path)


def load(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        StateError: the file is no such state.
    """
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                raise StateError(f"{path} is a safetensors file, but not one of save_state")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StateError(f"{path} cannot be read as a drafter state: {error}") from error
    states: dict[str, dict[str, Any]] = {}
    for key, array in tensors.items():
        part, _, name = key.rpartition("/")
        states.setdefault(part, {})[name] = array
    return states
