"""Documents from text files, .jsonl, .parquet, folders, globs, standard input and datasets."""

from __future__ import annotations

import glob
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hf_specplug.datastore.opening import HUB_SCHEME
from hf_specplug.errors import CorpusError

Document = str | NDArray[np.int32]
"""A text, or its token ids if they are known."""

STDIN = "-"
_SKIPPED = frozenset(
    {".git", ".hg", ".svn", ".tox", ".venv", "__pycache__", "node_modules", "site-packages"}
)
_BINARY = 1024  # first bytes of a file that are searched for a zero byte


@dataclass(frozen=True)
class Corpus:
    """The documents of some files, in order.

    Attributes:
        files: paths, `-` for standard input, or `hf://NAME[:SPLIT]` for a dataset of the Hub.
        text_field: field of .jsonl, .parquet and dataset rows that holds the text.

    Example:
        >>> Corpus(find(["src/", "chats.jsonl"]))  # doctest: +SKIP
    """

    files: tuple[str, ...]
    text_field: str = "text"

    @property
    def holds_texts(self) -> bool:
        """Whether its documents are the texts that the datastore will hold."""
        return True

    @property
    def repeatable(self) -> bool:
        """Whether it can be read twice and holds the texts that the datastore will hold."""
        return self.holds_texts and STDIN not in self.files

    def fingerprint(self) -> str:
        """A hash of names, sizes and times of the files: 32 hexadecimal digits."""
        digest = xxhash.xxh3_128(self.text_field.encode())
        for name in self.files:
            path = Path(name)
            stat = path.stat() if path.is_file() else None
            state = (name, stat and stat.st_size, stat and stat.st_mtime_ns)
            digest.update(repr(state).encode())
        return str(digest.hexdigest())

    def count(self) -> int | None:
        """The number of documents, None if it is unknown before they are read."""
        single = all(
            _kind(name) == "text" and not name.startswith(HUB_SCHEME) for name in self.files
        )
        return len(self.files) if single else None

    def documents(self, on_error: Callable[[CorpusError], None]) -> Iterator[Document]:
        """Yield the documents, empty ones included, so that a document is known by its number.

        Args:
            on_error: called with the error of each file or line that cannot be read; it may raise.
        """
        for name in self.files:
            try:
                yield from _read(name, self.text_field, on_error)
            except OSError as error:
                on_error(CorpusError(f"{name} cannot be read: {error}"))


def find(patterns: list[str]) -> tuple[str, ...]:
    """Expand paths, folders and globs to files, each in alphabetical order.

    A folder stands for all text files in it, except hidden folders and those of tools.

    Raises:
        CorpusError: a pattern matches nothing.
    """
    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if pattern == STDIN or pattern.startswith(HUB_SCHEME) or path.is_file():
            files.append(pattern)
        elif path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.is_file() and _belongs(p, path))
            found = [str(p) for p in inside if _is_text(p)]
            if not found:
                raise CorpusError(f"the folder {pattern!r} contains no text files")
            files += found
        else:
            found = sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
            if not found:
                raise CorpusError(f"{pattern!r} matches no file or folder")
            files += found
    return tuple(dict.fromkeys(files))


def _belongs(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return not any(part in _SKIPPED or part.startswith(".") for part in parts)


def _is_text(path: Path) -> bool:
    if _kind(path.name) != "text":
        return True
    try:
        with open(path, "rb") as file:
            return b"\0" not in file.read(_BINARY)
    except OSError:
        return False


def _kind(name: str) -> str:
    stem = name.removesuffix(".gz").removesuffix(".zst")
    if stem.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    return "parquet" if stem.endswith(".parquet") else "text"


def _read(name: str, field: str, on_error: Callable[[CorpusError], None]) -> Iterator[str]:
    if name.startswith(HUB_SCHEME):
        yield from _rows_of_dataset(name, field, on_error)
    elif _kind(name) == "parquet":
        yield from _rows_of_parquet(name, field, on_error)
    elif _kind(name) == "jsonl":
        with _open(name) as lines:
            yield from _rows_of_lines(name, lines, field, on_error)
    else:
        with _open(name) as file:
            yield file.read()


def _open(name: str) -> IO[str]:
    """Open a text file, decompressed. Bytes that are not UTF-8 are replaced."""
    if name == STDIN:
        return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")
    if name.endswith(".gz"):
        return gzip.open(name, "rt", encoding="utf-8", errors="replace")
    if name.endswith(".zst"):
        opener = _optional("zstandard", name).open
        return opener(name, "rt", encoding="utf-8", errors="replace")  # type: ignore[no-any-return]
    return open(name, encoding="utf-8", errors="replace")


def _rows_of_lines(
    name: str, lines: IO[str], field: str, on_error: Callable[[CorpusError], None]
) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                on_error(CorpusError(f"{name}, line {number}: not JSON: {error}"))
                continue
            yield from _text(row, field, f"{name}, line {number}", on_error)
    except (EOFError, ValueError) as error:  # a compressed file that is truncated
        on_error(CorpusError(f"{name}, after line {number}: {error}"))


def _rows_of_parquet(
    name: str, field: str, on_error: Callable[[CorpusError], None]
) -> Iterator[str]:
    parquet = _optional("pyarrow.parquet", name)
    try:
        file = parquet.ParquetFile(name)
        if field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            on_error(CorpusError(f"{name} has no column {field!r}; it has {columns}"))
            return
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            for value in batch.column(0).to_pylist():
                yield from _text({field: value}, field, name, on_error)
    except ValueError as error:  # pyarrow's errors are ValueErrors
        on_error(CorpusError(f"{name} cannot be read as parquet: {error}"))


def _rows_of_dataset(
    name: str, field: str, on_error: Callable[[CorpusError], None]
) -> Iterator[str]:
    path, _, split = name.removeprefix(HUB_SCHEME).partition(":")
    rows = _optional("datasets", name).load_dataset(path, split=split or "train", streaming=True)
    for number, row in enumerate(rows, start=1):
        yield from _text(row, field, f"{name}, row {number}", on_error)


def _text(
    row: Any, field: str, where: str, on_error: Callable[[CorpusError], None]
) -> Iterator[str]:
    """The text of a row. A chat (a list of turns) is the text of all its turns."""
    value = row.get(field) if isinstance(row, dict) else None
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        value = "\n\n".join(str(turn.get("content", "")) for turn in value)
    if isinstance(value, str):
        yield value
    else:
        fields = ", ".join(map(str, row)) if isinstance(row, dict) else "no fields"
        on_error(CorpusError(f"{where}: no text in {field!r} (--text-field); it has {fields}"))


def _optional(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise CorpusError(f"{name} needs {package}: pip install 'hf-specplug[corpora]'") from error
