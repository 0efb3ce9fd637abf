"""Building, appending to and merging stores, so that what is visible is always complete.

One writer at a time (a lock that the system releases if the writer dies). Shards are written under
names of their own and then listed; a build that was interrupted goes on after the last listed one.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hf_specplug.datastore import arrays, manifest
from hf_specplug.datastore.corpus import STDIN, Corpus
from hf_specplug.datastore.engines import Engine, Local
from hf_specplug.datastore.index import Arrays, token_dtype
from hf_specplug.datastore.kinds import KINDS
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.datastore.phrases import PhraseIndex
from hf_specplug.datastore.store import Datastore, described, refuse_other
from hf_specplug.datastore.suffix import MAX_SHARD
from hf_specplug.errors import CorpusError, StoreError

_LOCK = ".lock"
_OURS = re.compile(r"[0-9]{5}-[0-9a-f]{8}\.[a-z]+\.npy")
SHARD = 1 << 25  # tokens, unless memory or the user says otherwise
_BYTES_PER_TOKEN = 28  # of memory while a shard is built
_BATCH = 1 << 20  # characters that are tokenised at once

Progress = Callable[[int, int], None]
"""Told (documents, tokens) since the last time."""


@dataclass(frozen=True)
class Plan:
    """How a store is built.

    Attributes:
        shard_tokens: tokens of a shard, up to 2^27.
        max_tokens: of the whole corpus; 0: all.
        dedup: whether a document that was there already is left out.
        kind: of the index.
        given: whether documents are phrases as they are (kind "phrases").
    """

    shard_tokens: int = SHARD
    max_tokens: int = 0
    dedup: bool = False
    kind: str = "suffix"
    given: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise StoreError(f"a datastore is of kind {', '.join(KINDS)}, not {self.kind!r}")
        if self.given and self.kind != PhraseIndex.kind:
            raise StoreError(f"given phrases make a datastore of kind {PhraseIndex.kind}")
        if not 1 <= self.shard_tokens <= MAX_SHARD:
            raise StoreError(
                f"a shard has from 1 to {MAX_SHARD:,} tokens, not {self.shard_tokens:,}"
            )


def shard_tokens_for(memory: int) -> int:
    """The largest shard that `memory` bytes are enough for."""
    return max(1, min(MAX_SHARD, memory // _BYTES_PER_TOKEN))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The only writer of a store, which begins by removing what a dead one left.

    Raises:
        StoreError: another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a+b") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system: the user sees to it
            pass
        except OSError as error:
            raise StoreError(f"{folder} is being written by another process") from error
        _remove_unlisted(folder)
        yield


def _remove_unlisted(folder: Path) -> None:
    """Files that no manifest lists: of a writer that died, or merged away."""
    listed: set[str] = set()
    if (folder / manifest.NAME).exists():
        listed = manifest.load(folder).files()
    for path in folder.iterdir():
        ours = path.name.endswith(".partial") or _OURS.fullmatch(path.name)
        if ours and path.name not in listed:
            path.unlink(missing_ok=True)


def build(
    folder: Path,
    corpus: Corpus,
    tokenizer: Any,
    plan: Plan,
    on_error: Callable[[CorpusError], None],
    progress: Progress,
    append: bool = False,
    engine: Engine | None = None,
) -> Manifest:
    """Make a store of a corpus, or go on with one that was interrupted.

    Args:
        append: put new shards behind those of an existing store.
        engine: where to tokenise and sort; in this process if not given.

    Raises:
        StoreError: the folder holds another store, or other files.
        CorpusError: what `on_error` raised.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    with writing(folder):
        state = _begin(folder, corpus, tokenizer, plan, append)
        if state.build:
            engine = engine or Local()
            state = _add(folder, state, corpus, tokenizer, plan, on_error, progress, engine)
    return state


def refuse_foreign(folder: Path) -> None:
    """Raise StoreError if a folder holds files, but no store."""
    if not folder.exists() or (folder / manifest.NAME).exists():
        return
    if any(path.name != _LOCK for path in folder.iterdir()):
        raise StoreError(f"{folder} exists and is no datastore; choose a new folder")


def _begin(folder: Path, corpus: Corpus, tokenizer: Any, plan: Plan, append: bool) -> Manifest:
    """The manifest to go on from; its `build` says how far it is."""
    fresh = {
        "corpus": corpus.fingerprint(),
        "plan": [plan.shard_tokens, plan.max_tokens, plan.dedup, plan.given],
        "documents": 0,
        "tokens": 0,
    }
    made_by = described(tokenizer)
    if not (folder / manifest.NAME).exists():
        if append:
            raise StoreError(f"{folder} is no datastore to append to; build it first")
        state = Manifest(plan.kind, len(tokenizer), made_by, (), fresh)
        manifest.save(folder, state)
        return state
    state = manifest.load(folder)
    refuse_other(folder, state, made_by)
    if state.kind != plan.kind and not append:
        raise StoreError(f"{folder} is a datastore of kind {state.kind}: choose another folder")
    if state.build:
        same = all(state.build.get(key) == fresh[key] for key in ("corpus", "plan"))
        if same and STDIN not in corpus.files:
            return state
        raise StoreError(
            f"{folder} holds an interrupted build of another corpus, or of one that changed, or "
            "with other options: repeat that command, or remove the folder"
        )
    if not append:
        raise StoreError(f"{folder} is a finished datastore: append to it, or remove it first")
    state = state.with_shards(state.shards, fresh)
    manifest.save(folder, state)
    return state


def _add(
    folder: Path,
    state: Manifest,
    corpus: Corpus,
    tokenizer: Any,
    plan: Plan,
    on_error: Callable[[CorpusError], None],
    progress: Progress,
    engine: Engine,
) -> Manifest:
    """Read, tokenise and write shard by shard."""
    read = int(state.build["documents"])
    written = int(state.build["tokens"])
    most = plan.max_tokens or (1 << 62)
    shards = _Shards(folder, state, engine, plan)
    buffer = np.empty(plan.shard_tokens, token_dtype(state.vocab_size))
    filled = documents = 0
    texts = _new(corpus.documents(on_error), read, plan.dedup)
    for batch, rows in engine.tokenised(tokenizer, _batches(texts)):
        for (number, _), row in zip(batch, rows, strict=True):
            row = row[: max(0, min(plan.shard_tokens, most - written) - 1)]
            if filled + len(row) + 1 > plan.shard_tokens:
                shards.add(buffer[:filled], documents, read, written)
                filled = documents = 0
            read = number
            if len(row):
                buffer[filled : filled + len(row)] = row
                buffer[filled + len(row)] = state.vocab_size
                filled += len(row) + 1
                written += len(row) + 1
                documents += 1
            progress(1, len(row) + 1)
        if written >= most - 1:
            break
    shards.add(buffer[:filled], documents, read, written)
    return shards.finish()


class _Shards:
    """Writes shards in order, some of them still being indexed when the next ones are filled."""

    def __init__(self, folder: Path, state: Manifest, engine: Engine, plan: Plan) -> None:
        self._folder, self._state, self._engine = folder, state, engine
        self._build = PhraseIndex.given if plan.given else KINDS[state.kind].build
        self._waiting: deque[Callable[[], None]] = deque()
        self._count = len(state.shards)

    def add(self, tokens: NDArray[Any], documents: int, read: int, written: int) -> None:
        """Take over a filled shard; `read` documents and `written` tokens are then dealt with."""
        if not len(tokens):
            return
        size = len(tokens)
        index = self._engine.indexing(self._build, tokens.copy(), self._state.vocab_size)
        number = self._count
        self._count += 1

        def write() -> None:
            shard = write_shard(self._folder, number, index(), documents, size)
            build = {**self._state.build, "documents": read, "tokens": written}
            self._state = self._state.with_shards((*self._state.shards, shard), build)
            manifest.save(self._folder, self._state)

        self._waiting.append(write)
        while len(self._waiting) > self._engine.ahead:
            self._waiting.popleft()()

    def finish(self) -> Manifest:
        """Write what is waiting; the build is done."""
        while self._waiting:
            self._waiting.popleft()()
        self._state = self._state.with_shards(self._state.shards, {})
        manifest.save(self._folder, self._state)
        return self._state


def _new(texts: Iterator[str], done: int, dedup: bool) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of documents that are not in the store yet."""
    seen: set[bytes] = set()
    for number, text in enumerate(texts, start=1):
        if dedup:
            mark = xxhash.xxh3_128_digest(text.encode("utf-8", errors="replace"))
            if mark in seen:
                text = ""
            seen.add(mark)
        if number > done:
            yield number, text


def _batches(texts: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    size = 0
    for number, text in texts:
        batch.append((number, text))
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_shard(folder: Path, number: int, index: Arrays, documents: int, tokens: int) -> Shard:
    """Write an index; its files are named by number and content, so never twice."""
    digest = xxhash.xxh3_64()
    for array in index.values():
        digest.update(np.ascontiguousarray(array).data)
    stem = f"{number:05d}-{digest.hexdigest()[:8]}"
    files = {
        name: arrays.write(folder, f"{stem}.{name}.npy", array) for name, array in index.items()
    }
    return Shard(documents, tokens, files)


def merge(folder: Path, shard_tokens: int, progress: Progress) -> Manifest:
    """Join shards into fewer ones of up to `shard_tokens`; readers keep what they have open.

    Raises:
        StoreError: it is no finished store, or is damaged.
    """
    folder = Path(folder)
    plan = Plan(shard_tokens)
    manifest.load(folder)
    with writing(folder):
        store = Datastore(folder)
        if store.manifest.build:
            raise StoreError(f"{folder} holds an interrupted build: finish it first")
        store.check()
        kind, vocab = KINDS[store.manifest.kind], store.manifest.vocab_size
        sizes = [shard.tokens for shard in store.manifest.shards]
        most = sum(sizes) if kind.joins_all else plan.shard_tokens
        shards: list[Shard] = []
        for group in _groups(sizes, most):
            if len(group) == 1 and group[0] == len(shards):
                shards.append(store.manifest.shards[group[0]])
            else:
                index = kind.join([store.shards[i] for i in group], vocab)
                documents = sum(store.manifest.shards[i].documents for i in group)
                tokens = sum(sizes[i] for i in group)
                shards.append(write_shard(folder, len(shards), index, documents, tokens))
            progress(len(group), sum(sizes[i] for i in group))
        state = store.manifest.with_shards(tuple(shards), {})
        manifest.save(folder, state)
        _remove_unlisted(folder)
    return state


def _groups(sizes: list[int], most: int) -> list[list[int]]:
    """Consecutive shards that fit together."""
    groups: list[list[int]] = []
    total = 0
    for index, size in enumerate(sizes):
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups


def remove(folder: Path) -> None:
    """Delete a store: its own files, and the folder if nothing else is in it."""
    with writing(folder):
        for name in sorted(manifest.load(folder).files()):
            os.unlink(folder / name)
        os.unlink(folder / _LOCK)
    if not any(folder.iterdir()):
        folder.rmdir()
