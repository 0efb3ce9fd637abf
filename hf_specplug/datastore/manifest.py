"""`specplug.json`: what a store holds. What it does not list is not there.

A reader takes the manifest as one state; a writer puts new files beside the old ones, replaces the
manifest in one renaming, and removes only then what no manifest lists any more.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_specplug.datastore.arrays import DTYPES, ArrayFile, sync
from hf_specplug.errors import StoreError

NAME = "specplug.json"
FORMAT = 2
_WITHOUT_TOKENS = 1  # suffix arrays only, whose shards did not say how many tokens they hold
KINDS = ("suffix", "trigram", "phrases", "ngram", "dense")
MAX_BYTES = 1 << 24  # of a manifest
_MAX_ITEMS = 1 << 40  # of an array
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")


@dataclass(frozen=True)
class Shard:
    """A part of the corpus, with an index of its own.

    Attributes:
        documents, tokens: how many it was made of.
        arrays: by what they are, such as "tokens" and "suffixes".
    """

    documents: int
    tokens: int
    arrays: dict[str, ArrayFile]


@dataclass(frozen=True)
class Manifest:
    """The state of a store.

    Attributes:
        kind: of the index, one of `KINDS`.
        vocab_size: token ids are below; this id itself separates documents.
        tokenizer: {"name", "hash"} of what made the tokens.
        shards: complete ones only.
        build: of a build that is not finished: what it reads, and how far it is. Empty if finished.
        settings: how its indices are made, if that is not always the same; of a dense store: the
            "model" ("name", "hash"), the "layer" of its states, the "index" asked for, the
            "metric".
    """

    kind: str
    vocab_size: int
    tokenizer: dict[str, str]
    shards: tuple[Shard, ...] = ()
    build: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def with_shards(self, shards: tuple[Shard, ...], build: dict[str, Any]) -> Manifest:
        """The next state."""
        return replace(self, shards=shards, build=build)

    def files(self) -> set[str]:
        """Names of all files that belong to the store."""
        return {array.name for shard in self.shards for array in shard.arrays.values()} | {NAME}


def save(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest; a reader sees the old or the new one."""
    partial = folder / f"{NAME}.{os.getpid()}.partial"
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1)
    if len(text) > MAX_BYTES:
        raise StoreError(f"{folder} has too many shards for one manifest; merge them")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / NAME)
    sync(folder)


def load(folder: Path) -> Manifest:
    """Read and check a manifest; nothing of the arrays is read.

    Raises:
        StoreError: there is none, or it is not one that this version could have written.
    """
    path = folder / NAME
    if not path.is_file():
        raise StoreError(
            f"{folder} is no datastore: it has no {NAME} (see `specplug build --help`)"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        if raw.get("format") not in (FORMAT, _WITHOUT_TOKENS):
            raise ValueError(f"format {raw.get('format')!r}, and this version reads {FORMAT}")
        if raw["kind"] not in KINDS:
            raise ValueError(f"kind {raw['kind']!r}, and this version reads {', '.join(KINDS)}")
        tokenizer = raw["tokenizer"]
        if not all(isinstance(tokenizer[key], str) for key in ("name", "hash")):
            raise ValueError("a tokenizer has a name and a hash")
        if not isinstance(raw["build"], dict):
            raise ValueError("the state of a build is a table")
        return Manifest(
            str(raw["kind"]),
            _integer(raw["vocab_size"], 1, (1 << 31) - 2),
            {"name": tokenizer["name"], "hash": tokenizer["hash"]},
            tuple(_shard(shard) for shard in raw["shards"]),
            raw["build"],
            _settings(raw.get("settings", {}), raw["kind"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} cannot be used: {type(error).__name__}: {error}") from error


def _settings(raw: Any, kind: str) -> dict[str, Any]:
    if kind != "dense":
        return {}
    model = raw["model"]
    if not all(isinstance(model[key], str) for key in ("name", "hash")):
        raise ValueError("a model has a name and a hash")
    if not isinstance(raw["index"], str) or not isinstance(raw["metric"], str):
        raise ValueError("an index and a metric are named")
    _integer(raw["layer"], -1, 1 << 16)
    return dict(raw)


def _shard(raw: Any) -> Shard:
    arrays = {str(key): _array(value) for key, value in raw["arrays"].items()}
    tokens = raw["tokens"] if "tokens" in raw else arrays["tokens"].shape[0]
    documents, tokens = (_integer(value, 0, _MAX_ITEMS) for value in (raw["documents"], tokens))
    return Shard(documents, tokens, arrays)


def _array(raw: Any) -> ArrayFile:
    name, dtype, checksum = raw["name"], raw["dtype"], raw["checksum"]
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise ValueError(f"{name!r} is no plain file name")
    if dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {dtype!r}, and not one of {', '.join(DTYPES)}")
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{32}", checksum):
        raise ValueError(f"{name} has no xxh3 checksum")
    if not 1 <= len(raw["shape"]) <= 2:
        raise ValueError(f"{name} has shape {raw['shape']!r}")
    shape = tuple(_integer(size, 0, _MAX_ITEMS) for size in raw["shape"])
    return ArrayFile(name, dtype, shape, checksum)


def _integer(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r} is no whole number from {least} to {most}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
