"""Building, appending to and merging stores, so that what is visible is always complete.

One writer at a time (a lock that the system releases if the writer dies). Shards are written under
names of their own and then listed; a build that was interrupted goes on after the last listed one.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hf_specplug.datastore import arrays, manifest
from hf_specplug.datastore.building.corpus import STDIN, Corpus, Document
from hf_specplug.datastore.building.executors import Batch, Build, Executor, Local
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
_BATCH = 1 << 20  # characters, or tokens if they are known, that are tokenised at once

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
        settings: what the manifest is to say of how indices are made (kind "dense").
    """

    shard_tokens: int = SHARD
    max_tokens: int = 0
    dedup: bool = False
    kind: str = "suffix"
    given: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

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
    engine: Executor | None = None,
    index: Build | None = None,
) -> Manifest:
    """Make a store of a corpus, or go on with one that was interrupted.

    Args:
        append: put new shards behind those of an existing store.
        engine: where to tokenise and index; in this process if not given.
        index: what indexes a shard, if the kind cannot do it by itself.

    Raises:
        StoreError: the folder holds another store, or other files.
        CorpusError: what `on_error` raised.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    with writing(folder):
        state = _begin(folder, corpus, tokenizer, plan, append)
        if state.build:
            shards = _Shards(folder, state, engine or Local(), plan, index)
            state = _add(shards, corpus, tokenizer, plan, on_error, progress)
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
        # how what was written is indexed in the end can still be changed
        "settings": {key: value for key, value in plan.settings.items() if key != "index"},
        "documents": 0,
        "tokens": 0,
        "shards": 0,
    }
    made_by = described(tokenizer)
    if not (folder / manifest.NAME).exists():
        if append:
            raise StoreError(f"{folder} is no datastore to append to; build it first")
        state = Manifest(plan.kind, len(tokenizer), made_by, (), fresh, dict(plan.settings))
        manifest.save(folder, state)
        return state
    state = manifest.load(folder)
    refuse_other(folder, state, made_by)
    if state.kind != plan.kind and not append:
        raise StoreError(f"{folder} is a datastore of kind {state.kind}: choose another folder")
    if state.build:
        same = all(state.build.get(key) == fresh[key] for key in ("corpus", "plan", "settings"))
        if same and STDIN not in corpus.files:
            return replace(state, settings=dict(plan.settings))
        raise StoreError(
            f"{folder} holds an interrupted build of another corpus, or of one that changed, or "
            "with other options: repeat that command, or remove the folder"
        )
    if append and any(_made(state.settings, key) != _made(plan.settings, key) for key in _MADE_OF):
        raise StoreError(f"{folder} holds states of another model, or of this one as it was before")
    if not append:
        raise StoreError(f"{folder} is a finished datastore: append to it, or remove it first")
    state = state.with_shards(state.shards, {**fresh, "shards": len(state.shards)})
    manifest.save(folder, state)
    return state


_MADE_OF = ("model", "layer")


def _made(settings: Mapping[str, Any], key: str) -> Any:
    value = settings.get(key)
    return value["hash"] if isinstance(value, dict) else value


def _add(
    shards: _Shards,
    corpus: Corpus,
    tokenizer: Any,
    plan: Plan,
    on_error: Callable[[CorpusError], None],
    progress: Progress,
) -> Manifest:
    """Read, tokenise and write shard by shard."""
    state = shards.state
    read = int(state.build["documents"])
    written = int(state.build["tokens"])
    most = plan.max_tokens or (1 << 62)
    buffer = np.empty(plan.shard_tokens, token_dtype(state.vocab_size))
    filled = documents = 0
    texts = _new(corpus.documents(on_error), read, plan.dedup)
    for batch, rows in shards.engine.tokenised(tokenizer, _batches(texts)):
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

    def __init__(
        self, folder: Path, state: Manifest, engine: Executor, plan: Plan, index: Build | None
    ) -> None:
        self.state, self.engine = state, engine
        self._folder = folder
        self._kind = KINDS[state.kind]
        self._build = index or (PhraseIndex.given if plan.given else self._kind.build)
        self._waiting: deque[Callable[[], None]] = deque()
        self._count = len(state.shards)

    def add(self, tokens: NDArray[Any], documents: int, read: int, written: int) -> None:
        """Take over a filled shard; `read` documents and `written` tokens are then dealt with."""
        if not len(tokens):
            return
        size = len(tokens)
        index = self.engine.indexing(self._build, tokens.copy(), self.state.vocab_size)
        number = self._count
        self._count += 1

        def write() -> None:
            shard = write_shard(self._folder, number, index(), documents, size)
            build = {**self.state.build, "documents": read, "tokens": written}
            self.state = self.state.with_shards((*self.state.shards, shard), build)
            manifest.save(self._folder, self.state)

        self._waiting.append(write)
        while len(self._waiting) > self.engine.ahead:
            self._waiting.popleft()()

    def finish(self) -> Manifest:
        """Write what is waiting; the build is done."""
        while self._waiting:
            self._waiting.popleft()()
        begin = int(self.state.build["shards"])
        before, new = self.state.shards[:begin], self.state.shards[begin:]
        if self._kind.joined and new:
            parts = Datastore(self._folder).shards[begin:]
            index = self._kind.join(parts, self.state.vocab_size, self.state.settings)
            documents, tokens = sum(s.documents for s in new), sum(s.tokens for s in new)
            new = (write_shard(self._folder, self._count, index, documents, tokens),)
        self.state = self.state.with_shards((*before, *new), {})
        manifest.save(self._folder, self.state)
        _remove_unlisted(self._folder)
        return self.state


def _new(texts: Iterator[Document], done: int, dedup: bool) -> Iterator[tuple[int, Document]]:
    """(number from 1, text) of documents that are not in the store yet."""
    seen: set[bytes] = set()
    for number, text in enumerate(texts, start=1):
        if dedup:
            raw = (
                text.encode("utf-8", errors="replace") if isinstance(text, str) else text.tobytes()
            )
            mark = xxhash.xxh3_128_digest(raw)
            if mark in seen:
                text = text[:0]
            seen.add(mark)
        if number > done:
            yield number, text


def _batches(texts: Iterable[tuple[int, Document]]) -> Iterator[Batch]:
    batch: Batch = []
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
                parts = [store.shards[i] for i in group]
                index = kind.join(parts, vocab, store.manifest.settings)
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
