"""A datastore that grows from use: it records answers for later calls to draft from."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.folder import exclusive_writer, refuse_foreign, write_shard
from hf_specplug.datastore.kinds.contract import token_dtype
from hf_specplug.datastore.kinds.suffix import SuffixIndex
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.datastore.store import Datastore, tokenizer_identity
from hf_specplug.errors import OptionError, StoreError

logger = logging.getLogger("hf_specplug")

FLUSH_TOKENS = 1 << 16
"""Tokens that are kept in memory before they are written; they are lost if the process dies."""

_MAX_WAITING = 1000  # texts that are kept while writing fails


class GrowingStore:
    """Appends token sequences to a datastore of kind "suffix", up to a size.

    A new shard is joined with older ones that are at most twice its size, so that there are few
    shards. The oldest shards are removed when there are too many tokens.

    Args:
        path: folder of the datastore; it is created if it does not exist.
        tokenizer: the model's tokenizer; that of an existing datastore must have the same ids.
        max_tokens: number of tokens to keep at most.

    Raises:
        StoreError: the folder is not a datastore of this kind and tokenizer.
        OptionError: `max_tokens` is not a positive integer.

    Example:
        >>> store = GrowingStore("mine.store", tokenizer)  # doctest: +SKIP
        >>> store.add(np.array([5, 6, 7]))
        >>> store.flush()
    """

    def __init__(
        self, path: str | os.PathLike[str], tokenizer: Any, max_tokens: int = 10_000_000
    ) -> None:
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
            raise OptionError(f"max_tokens must be a positive integer, not {max_tokens!r}")
        self.path = Path(path).absolute()  # the working directory may change
        self._max_tokens = max_tokens
        self._vocab = len(tokenizer)
        self._tokenizer = tokenizer_identity(tokenizer)
        self._waiting: list[NDArray[np.int32]] = []
        self._lock = threading.Lock()
        refuse_foreign(self.path)
        if (self.path / manifest.NAME).exists():
            known = Datastore(self.path)
            known.require_tokenizer(tokenizer)
            if known.manifest.kind != SuffixIndex.kind:
                raise StoreError(
                    f"{self.path} is a datastore of kind {known.manifest.kind}, not suffix"
                )
        self._at_exit = weakref.finalize(self, _flush, weakref.ref(self))

    def add(self, tokens: NDArray[Any]) -> None:
        """Record a text: int[n] token ids. It ends before the first id outside the vocabulary."""
        tokens = np.asarray(tokens, np.int32)
        invalid = np.flatnonzero((tokens < 0) | (tokens >= self._vocab))
        tokens = tokens[: invalid[0]] if len(invalid) else tokens
        if not len(tokens):
            return
        with self._lock:
            self._waiting.append(tokens.copy())
            full = sum(map(len, self._waiting)) >= min(FLUSH_TOKENS, self._max_tokens)
        if full:
            self.flush()

    def flush(self) -> None:
        """Write recorded texts to disk. They are kept if another process is writing."""
        with self._lock:
            if not self._waiting:
                return
            try:
                with exclusive_writer(self.path):
                    self._write()
            except (OSError, StoreError) as error:
                reason = str(error)  # not the error: its traceback would keep this object alive
                logger.warning("answers are not recorded to %s yet: %s", self.path, reason)
                self._waiting = self._waiting[-_MAX_WAITING:]
                return
            self._waiting = []

    def __del__(self) -> None:
        with suppress(Exception):
            self.flush()

    def _write(self) -> None:
        separator = np.array([self._vocab])
        new = np.concatenate([part for text in self._waiting for part in (text, separator)])
        new = new[-self._max_tokens :].astype(token_dtype(self._vocab))
        state = Manifest(SuffixIndex.kind, self._vocab, self._tokenizer)
        opened: list[NDArray[Any]] = []
        if (self.path / manifest.NAME).exists():
            store = Datastore(self.path)
            if store.manifest.build:
                raise StoreError(f"{self.path} holds an interrupted build: finish it first")
            state, opened = store.manifest, [shard.tokens for shard in store.shards]
        shards, documents = list(state.shards), len(self._waiting)
        while shards and len(opened[-1]) <= 2 * len(new):
            joined = len(opened[-1]) + len(new)
            if joined > self._max_tokens:
                break
            new = np.concatenate([opened.pop(), new])
            documents += shards.pop().documents
        while shards and sum(map(len, opened)) + len(new) > self._max_tokens:
            shards.pop(0)
            opened.pop(0)
        number = _next_number(state.shards)
        index = SuffixIndex.build(new, self._vocab)
        written = write_shard(self.path, number, index, documents, len(new))
        manifest.save(self.path, state.with_shards((*shards, written), {}))


def _next_number(shards: tuple[Shard, ...]) -> int:
    """A shard number that no listed file has."""
    names = [array.name for shard in shards for array in shard.arrays.values()]
    return 1 + max((int(name[:5]) for name in names if name[:5].isdigit()), default=-1)


def _flush(reference: weakref.ref[GrowingStore]) -> None:
    store = reference()
    if store is not None:
        store.flush()
