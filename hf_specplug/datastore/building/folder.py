"""The folder of a datastore while it is written: one writer, and files under names of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash

from hf_specplug.datastore import arrays, manifest
from hf_specplug.datastore.kinds.contract import Arrays
from hf_specplug.datastore.manifest import Shard
from hf_specplug.errors import StoreError

_LOCK = ".lock"
_ARRAY_FILE = re.compile(r"[0-9]{5}-[0-9a-f]{8}\.[a-z]+\.npy")


@contextmanager
def exclusive_writer(folder: Path) -> Iterator[None]:
    """Lock a folder for writing and remove what an earlier writer left unfinished.

    The operating system releases the lock if the process dies.

    Raises:
        StoreError: another process writes to the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a+b") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system: the user must take care
            pass
        except OSError as error:
            raise StoreError(f"{folder} is being written by another process") from error
        remove_unlisted(folder)
        yield


def remove_unlisted(folder: Path) -> None:
    """Remove array files that the manifest does not list: of a dead writer, or merged."""
    listed: set[str] = set()
    if (folder / manifest.NAME).exists():
        listed = manifest.load(folder).files()
    for path in folder.iterdir():
        ours = path.name.endswith(".partial") or _ARRAY_FILE.fullmatch(path.name)
        if ours and path.name not in listed:
            path.unlink(missing_ok=True)


def refuse_foreign(folder: Path) -> None:
    """Raise StoreError if a folder holds files but is not a datastore."""
    if not folder.exists() or (folder / manifest.NAME).exists():
        return
    if any(path.name != _LOCK for path in folder.iterdir()):
        raise StoreError(f"{folder} exists and is not a datastore; choose a new folder")


def write_shard(folder: Path, number: int, index: Arrays, documents: int, tokens: int) -> Shard:
    """Write the arrays of a shard. Its files are not part of the datastore until listed.

    File names contain the number and a hash of the content, so that no file is ever overwritten
    by another content.
    """
    digest = xxhash.xxh3_64()
    for array in index.values():
        digest.update(np.ascontiguousarray(array).data)
    stem = f"{number:05d}-{digest.hexdigest()[:8]}"
    files = {
        name: arrays.write(folder, f"{stem}.{name}.npy", array) for name, array in index.items()
    }
    return Shard(documents, tokens, files)
