"""Arrays on disk: written atomically, and mapped only if the file has the expected layout."""

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
_BLOCK = 1 << 24  # bytes that are read at a time


@dataclass(frozen=True)
class ArrayFile:
    """A `.npy` file with one or two dimensions, as listed in the manifest.

    Attributes:
        name: file name in the datastore's folder.
        dtype: one of `DTYPES`.
        shape: shape of the array.
        checksum: xxh3_128 of the whole file, 32 hexadecimal digits.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str


def write(folder: Path, name: str, array: NDArray[Any]) -> ArrayFile:
    """Write an array to a temporary file, flush it to disk, and rename the file to `name`."""
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
    """Flush a folder to disk, so that a renaming in it survives a crash."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_array(folder: Path, described: ArrayFile) -> NDArray[Any]:
    """Map an array read-only. Bytes are read from disk when they are used.

    Raises:
        StoreError: the file is missing, is not a regular file, or differs from the description.
    """
    path = folder / described.name
    try:
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{path} is missing or not a regular file; build the datastore again")
        with open(path, "rb") as file:
            return _mapped(file, described)
    except StoreError:
        raise
    except Exception as error:  # numpy reports a damaged header in many ways
        raise StoreError(f"{path} cannot be read as an array: {error}") from error


def _mapped(file: BinaryIO, described: ArrayFile) -> NDArray[Any]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy format {version} is not supported")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != described.shape or dtype != np.dtype(described.dtype) or fortran:
        raise ValueError(
            f"it holds {dtype}{list(shape)}, "
            f"but the manifest lists {described.dtype}{list(described.shape)}"
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
        StoreError: the file has changed since it was written, or cannot be read.
    """
    path = folder / described.name
    try:
        found = _checksum(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read ({error.strerror}); build the datastore again"
        ) from error
    if found != described.checksum:
        raise StoreError(f"{path} has changed since it was written (the checksum differs)")


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())
