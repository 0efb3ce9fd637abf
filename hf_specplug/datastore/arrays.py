"""Arrays on disk: written whole or not at all, mapped only if they are exactly what was written."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

DTYPES = ("uint8", "uint16", "uint32", "int32", "float32", "float16")
_BLOCK = 1 << 24


@dataclass(frozen=True)
class ArrayFile:
    """A one-dimensional or two-dimensional `.npy` file, as the manifest names it.

    Attributes:
        name: of the file, in the store's folder.
        dtype: one of `DTYPES`.
        shape: of the array.
        checksum: xxh3_128 of the whole file, 32 hexadecimal digits.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str


def write(folder: Path, name: str, array: NDArray[Any]) -> ArrayFile:
    """Write an array under a temporary name, make sure that it is on disk, and rename it."""
    array = np.ascontiguousarray(array)
    partial = folder / f"{name}.partial"
    with open(partial, "wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    checksum = _checksum(partial)
    os.replace(partial, folder / name)
    sync(folder)
    return ArrayFile(name, str(array.dtype), array.shape, checksum)


def sync(folder: Path) -> None:
    """Make sure that a renaming is on disk."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_array(folder: Path, described: ArrayFile) -> NDArray[Any]:
    """Map an array read-only; its bytes are read when they are used.

    Raises:
        StoreError: the file is missing, is no regular file, or is not as described.
    """
    path = folder / described.name
    try:
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{path} is missing, or no regular file; build the store again")
        with open(path, "rb") as file:
            return _mapped(file, described)
    except StoreError:
        raise
    except Exception as error:  # numpy reports a damaged header in many ways
        raise StoreError(f"{path} cannot be read as an array: {error}") from error


def _mapped(file: BinaryIO, described: ArrayFile) -> NDArray[Any]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy format {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != described.shape or dtype != np.dtype(described.dtype) or fortran:
        raise ValueError(
            f"it holds {dtype}{list(shape)}, "
            f"but the manifest says {described.dtype}{list(described.shape)}"
        )
    start = file.tell()
    size = os.fstat(file.fileno()).st_size
    needed = start + dtype.itemsize * math.prod(shape)
    if size != needed:
        raise ValueError(f"it has {size:,} bytes instead of {needed:,}")
    if needed == start:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, mode="r", offset=start, shape=shape)


def verify(folder: Path, described: ArrayFile) -> None:
    """Compare the checksum of the whole file.

    Raises:
        StoreError: a byte is not what was written.
    """
    path = folder / described.name
    try:
        found = _checksum(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read ({error.strerror}); build the store again"
        ) from error
    if found != described.checksum:
        raise StoreError(f"{path} has changed since it was written (its checksum differs)")


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())
