"""The state learned across calls, saved as a safetensors file: arrays by part and key."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import RENAMED
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.errors import StateError

_FORMAT = "hf_specplug drafter state 1"
_MIXER = ""  # the mixer's part; no drafter has this name


def save(path: str | os.PathLike[str], states: dict[str, dict[str, NDArray[Any]]]) -> None:
    """Write the arrays `states[part][key]` to a file, atomically."""
    tensors = {
        f"{part}/{key}": np.ascontiguousarray(array)
        for part, arrays in states.items()
        for key, array in arrays.items()
    }
    partial = f"{os.fspath(path)}.partial"
    save_file(tensors, partial, metadata={"format": _FORMAT})
    os.replace(partial, path)


def load(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read what `save` wrote. Old names of drafters are replaced by the present ones.

    Raises:
        StateError: the file cannot be read, or `save` did not write it.
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
        if part == _MIXER:
            drafter, dot, array_name = name.partition(".")
            name = f"{RENAMED.get(drafter, drafter)}{dot}{array_name}"
        states.setdefault(RENAMED.get(part, part), {})[name] = array
    return states


def learned(mixer: Mixer, drafters: Sequence[Drafter]) -> dict[str, dict[str, NDArray[Any]]]:
    """A copy of the learned state of mixer and drafters."""
    parts: dict[str, Drafter | Mixer] = {_MIXER: mixer}
    parts |= {drafter.name: drafter for drafter in drafters}
    return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})


def taught(
    states: dict[str, dict[str, Any]], mixer: Mixer, drafters: Sequence[Drafter]
) -> list[Drafter]:
    """Load what `learned` returned into the mixer and into copies of the drafters.

    Returns:
        The drafters: a copy with the loaded state for each drafter in `states`, else the given one.

    Raises:
        StateError: `states` does not fit. The mixer is then unchanged.
    """
    known = {drafter.name: drafter for drafter in drafters}
    of_drafters = {name: arrays for name, arrays in states.items() if name != _MIXER}
    if unknown := set(of_drafters) - set(known):
        raise StateError(f"it holds {sorted(unknown)}, but this plug has {sorted(known)}")
    fresh = {name: copy.deepcopy(known[name]) for name in of_drafters}
    for name, arrays in of_drafters.items():
        fresh[name].load_state_dict(arrays)
    mixer.load_state_dict(states.get(_MIXER, {}))
    return [fresh.get(drafter.name, drafter) for drafter in drafters]
