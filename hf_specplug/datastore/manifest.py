"""`specplug.json`: the manifest of a datastore. Files that it does not list do not belong to it.

A writer puts new files beside the old ones, replaces the manifest by one atomic renaming, and only
then removes files that are no longer listed. A reader therefore sees one consistent state.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_specplug.datastore.arrays import DTYPES, ArrayFile, sync
from hf_specplug.datastore.kinds.registry import registry
from hf_specplug.errors import StoreError

NAME = "specplug.json"
FORMAT = 2
_FORMAT_1 = 1  # suffix arrays only; shards without their number of tokens
MAX_BYTES = 1 << 24
"""Largest size of a manifest in bytes."""

_MAX_ITEMS = 1 << 40  # of an array
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")


@dataclass(frozen=True)
class Shard:
    """A part of the corpus with an index of its own.

    Attributes:
        documents: number of documents it was built from.
        tokens: number of tokens it was built from, the ends of documents included.
        arrays: the files of its index by array name, such as "tokens" and "suffixes".
    """

    documents: int
    tokens: int
    arrays: dict[str, ArrayFile]


@dataclass(frozen=True)
class Manifest:
    """The state of a datastore.

    Attributes:
        kind: name of an `Index` class.
        vocab_size: number of token ids; this number itself is the id that ends a document.
        tokenizer: {"name", "hash"} of the tokenizer.
        shards: the complete shards.
        build: source and progress of an unfinished build; empty if the datastore is finished.
        settings: what else defines the indexes, if the kind has settings; see its
            `check_settings`.
        left_out: number of documents that were left out because of what they contain.
    """

    kind: str
    vocab_size: int
    tokenizer: dict[str, str]
    shards: tuple[Shard, ...] = ()
    build: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0

    def with_shards(self, shards: tuple[Shard, ...], build: dict[str, Any]) -> Manifest:
        """The same datastore with other shards and build progress."""
        return replace(self, shards=shards, build=build)

    def files(self) -> set[str]:
        """Names of all files that belong to the datastore."""
        return {array.name for shard in self.shards for array in shard.arrays.values()} | {NAME}


def save(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest. A reader sees either the old or the new one."""
    partial = folder / f"{NAME}.{os.getpid()}.partial"
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1)
    if len(text) > MAX_BYTES:
        raise StoreError(f"{folder} has too many shards for one manifest; run `specplug merge`")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / NAME)
    sync(folder)


def load(folder: Path) -> Manifest:
    """Read and check a manifest. Arrays are not read.

    Raises:
        StoreError: it is missing, damaged, or of an unsupported format or kind.
    """
    path = folder / NAME
    if not path.is_file():
        raise StoreError(
            f"{folder} is not a datastore: it has no {NAME} (see `specplug build --help`)"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        if raw.get("format") not in (FORMAT, _FORMAT_1):
            raise ValueError(f"format {raw.get('format')!r} is not supported, only up to {FORMAT}")
        kinds = registry()
        if raw["kind"] not in kinds:
            raise ValueError(f"kind {raw['kind']!r} is not one of {', '.join(kinds)}")
        tokenizer = raw["tokenizer"]
        if not all(isinstance(tokenizer[key], str) for key in ("name", "hash")):
            raise ValueError("a tokenizer needs a name and a hash")
        if not isinstance(raw["build"], dict):
            raise ValueError("the progress of a build must be an object")
        return Manifest(
            str(raw["kind"]),
            _integer(raw["vocab_size"], 1, (1 << 31) - 2),
            {"name": tokenizer["name"], "hash": tokenizer["hash"]},
            tuple(_shard(shard) for shard in raw["shards"]),
            raw["build"],
            kinds[raw["kind"]].check_settings(raw.get("settings", {})),
            _integer(raw.get("left_out", 0), 0, _MAX_ITEMS),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} cannot be used: {type(error).__name__}: {error}") from error


def _shard(raw: Any) -> Shard:
    arrays = {str(key): _array(value) for key, value in raw["arrays"].items()}
    tokens = raw["tokens"] if "tokens" in raw else arrays["tokens"].shape[0]
    documents, tokens = (_integer(value, 0, _MAX_ITEMS) for value in (raw["documents"], tokens))
    return Shard(documents, tokens, arrays)


def _array(raw: Any) -> ArrayFile:
    name, dtype, checksum = raw["name"], raw["dtype"], raw["checksum"]
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise ValueError(f"{name!r} is not a plain file name")
    if dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {dtype!r}, not one of {', '.join(DTYPES)}")
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{32}", checksum):
        raise ValueError(f"{name} has no xxh3_128 checksum")
    if not 1 <= len(raw["shape"]) <= 2:
        raise ValueError(f"{name} has shape {raw['shape']!r}")
    shape = tuple(_integer(size, 0, _MAX_ITEMS) for size in raw["shape"])
    return ArrayFile(name, dtype, shape, checksum)


def _integer(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r} is not an integer from {least} to {most}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
