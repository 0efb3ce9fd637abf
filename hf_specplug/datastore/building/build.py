"""Building and appending to datastores so that what is visible is always complete.

Only one process writes. Shards are written under names of their own and then listed in the
manifest; an interrupted build continues after the last listed shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.corpus import STDIN, Corpus, Document
from hf_specplug.datastore.building.executors import Batch, Executor, IndexBuilder, LocalExecutor
from hf_specplug.datastore.building.folder import exclusive_writer, refuse_foreign
from hf_specplug.datastore.building.leave_out import LeaveOut, decoded
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.building.shard_writer import Progress, ShardWriter
from hf_specplug.datastore.kinds.contract import NO_SETTINGS, token_dtype
from hf_specplug.datastore.kinds.registry import index_class
from hf_specplug.datastore.manifest import Manifest
from hf_specplug.datastore.store import require_tokenizer, tokenizer_identity
from hf_specplug.errors import CorpusError, StoreError

BATCH = 1 << 20  # characters (or tokens, if they are known) that are tokenized at once


def build(
    folder: Path,
    corpus: Corpus,
    tokenizer: Any,
    options: BuildOptions,
    on_error: Callable[[CorpusError], None],
    progress: Progress,
    executor: Executor | None = None,
    builder: IndexBuilder | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    leave_out: LeaveOut | None = None,
) -> Manifest:
    """Build a datastore from a corpus, continue an interrupted build, or append shards.

    Args:
        folder: folder of the datastore; it is created if it does not exist.
        corpus: the documents.
        tokenizer: the model's tokenizer.
        options: see `BuildOptions`. Names in it (`tokenizer`, `engine`, `model`,
            `from_model_outputs`, `leave_out`) are not resolved here; `job.prepare` does that.
        on_error: called with the error of each file or line that cannot be read; it may raise.
        progress: called with (documents, tokens) that have been read since the last call.
        executor: where to tokenize and index; this process by default.
        builder: builds the index of a shard; by default that of the kind.
        settings: settings of the kind, for the manifest.
        leave_out: finds the documents that stay out.

    Raises:
        StoreError: the folder holds another datastore or other files.
        CorpusError: raised by `on_error`.

    Example:
        >>> options = BuildOptions(kind="trigram")
        >>> build(Path("my.store"), Corpus(("a.txt",)), tokenizer, options, errors.append,
        ...       lambda documents, tokens: None)  # doctest: +SKIP
    """
    folder = Path(folder)
    refuse_foreign(folder)
    with exclusive_writer(folder):
        state = _begin(folder, corpus, tokenizer, options, dict(settings), leave_out)
        if state.build:
            shards = ShardWriter(folder, state, executor or LocalExecutor(), options, builder)
            state = _add(shards, corpus, tokenizer, options, on_error, progress, leave_out)
    return state


def _begin(
    folder: Path,
    corpus: Corpus,
    tokenizer: Any,
    options: BuildOptions,
    settings: dict[str, Any],
    leave_out: LeaveOut | None,
) -> Manifest:
    """The manifest to continue from. Its `build` has the source and the progress."""
    identity = tokenizer_identity(tokenizer)
    begun = manifest.load(folder) if (folder / manifest.NAME).exists() else None
    if begun is not None and len(begun.shards) == begun.build.get("shards"):
        begun = _without_build(begun, options)
    plan = [options.shard_tokens, options.max_tokens, options.dedup, options.given]
    build = {
        "corpus": corpus.fingerprint(),
        "plan": plan if leave_out is None else [*plan, leave_out.fingerprint],
        "documents": 0,
        "tokens": 0,
        "left_out": 0,
        "shards": 0 if begun is None else len(begun.shards),
    }
    if begun is None:
        if options.append:
            raise StoreError(f"{folder} is not a datastore to append to; build it first")
        kind = options.index_class.kind
        return _saved(folder, Manifest(kind, len(tokenizer), identity, (), build, settings))
    require_tokenizer(folder, begun, identity)
    if begun.kind != options.index_class.kind and not options.append:
        raise StoreError(f"{folder} is a datastore of kind {begun.kind}: choose another folder")
    shard_settings = index_class(begun.kind).shard_settings
    same_settings = shard_settings(begun.settings) == shard_settings(settings)
    if begun.build:
        same = all(begun.build.get(key) == build[key] for key in ("corpus", "plan"))
        if same and same_settings and STDIN not in corpus.files:
            return replace(begun, settings=settings)
        raise StoreError(
            f"{folder} holds an interrupted build of another corpus, or of one that has changed, "
            "or with other options: repeat that command, or remove the folder"
        )
    if not options.append:
        raise StoreError(f"{folder} is a finished datastore: append to it, or remove it first")
    if not same_settings:
        raise StoreError(f"{folder} holds the hidden states of another model or layer")
    return _saved(folder, begun.with_shards(begun.shards, build))


def _without_build(begun: Manifest, options: BuildOptions) -> Manifest | None:
    """The state before an interrupted build that has written no shard: there is nothing to keep.

    So a command that failed at once can be corrected. An append to a folder without any shard is
    an exception: the interrupted build may have been the first one, of another corpus.
    """
    if begun.shards:
        return begun.with_shards(begun.shards, {})
    return begun if options.append else None


def _saved(folder: Path, state: Manifest) -> Manifest:
    manifest.save(folder, state)
    return state


def _add(
    shards: ShardWriter,
    corpus: Corpus,
    tokenizer: Any,
    options: BuildOptions,
    on_error: Callable[[CorpusError], None],
    progress: Progress,
    leave_out: LeaveOut | None,
) -> Manifest:
    """Read, tokenize and write shard by shard."""
    state = shards.state
    read = int(state.build["documents"])
    written = int(state.build["tokens"])
    before = int(state.build.get("left_out", 0))
    left_out: set[int] = set()  # numbers of documents, which may be read ahead

    def done() -> dict[str, int]:
        now = before + sum(number <= read for number in left_out)
        return {"documents": read, "tokens": written, "left_out": now}

    most = options.max_tokens or (1 << 62)
    buffer = np.empty(options.shard_tokens, token_dtype(state.vocab_size))
    filled = documents = 0
    strings: list[str] = []
    found = corpus.documents(on_error)
    documents_left = _new_documents(found, read, options.dedup, leave_out, left_out)
    for batch, rows in shards.executor.tokenize(tokenizer, _batches(documents_left)):
        for (number, document), row in zip(batch, rows, strict=True):
            if leave_out and not corpus.holds_texts and leave_out.matches(row):
                left_out.add(number)
                row = row[:0]
            row = row[: max(0, min(options.shard_tokens, most - written) - 1)]
            if filled + len(row) + 1 > options.shard_tokens:
                shards.add(buffer[:filled], documents, done(), strings)
                filled = documents = 0
                strings = []
            read = number
            if len(row):
                buffer[filled : filled + len(row)] = row
                buffer[filled + len(row)] = state.vocab_size
                filled += len(row) + 1
                written += len(row) + 1
                documents += 1
                if options.given:
                    known = corpus.holds_texts and isinstance(document, str)
                    strings.append(str(document) if known else decoded(tokenizer, row))
            progress(1, len(row) + 1)
        if written >= most - 1:
            break
    shards.add(buffer[:filled], documents, done(), strings)
    return shards.finish(done()["left_out"], progress)


def _new_documents(
    documents: Iterator[Document],
    done: int,
    dedup: bool,
    leave_out: LeaveOut | None,
    left_out: set[int],
) -> Iterator[tuple[int, Document]]:
    """(number from 1, document) of those after the first `done`.

    Repeated ones are emptied, and so are those to leave out, whose numbers `left_out` receives.
    """
    seen: set[bytes] = set()
    for number, document in enumerate(documents, start=1):
        if dedup:
            digest = xxhash.xxh3_128_digest(_bytes(document))
            if digest in seen:
                document = document[:0]
            seen.add(digest)
        if number > done:
            if leave_out and leave_out.matches(document):
                left_out.add(number)
                document = document[:0]
            yield number, document


def _bytes(document: Document) -> bytes:
    if isinstance(document, str):
        return document.encode("utf-8", errors="replace")
    return document.tobytes()


def _batches(documents: Iterable[tuple[int, Document]]) -> Iterator[Batch]:
    """Numbered documents in batches of about `BATCH` characters or tokens."""
    batch: Batch = []
    size = 0
    for number, document in documents:
        batch.append((number, document))
        size += len(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
