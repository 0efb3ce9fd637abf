"""A store that grows from use: what a model answered today is drafted from tomorrow."""

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
from hf_specplug.datastore.building.build import refuse_foreign, write_shard, writing
from hf_specplug.datastore.index import token_dtype
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.datastore.store import Datastore, described
from hf_specplug.datastore.suffix import SuffixIndex
from hf_specplug.errors import OptionError, StoreError

logger = logging.getLogger("hf_specplug")

FLUSH = 1 << 16  # tokens that are kept in memory, and lost if the process dies


class GrowingStore:
    """Appends token sequences to a store, within a size.

    Small shards are joined as they come, each with a neighbour that is no larger than twice its
    size, so that there are few; the oldest shards go when there are too many tokens.

    Args:
        path: the store's folder; made if it is not there.
        tokenizer: what the tokens mean; that of an existing store must be equal.
        max_tokens: kept at most.

    Raises:
        StoreError: the folder is no store, or one of another tokenizer.
        OptionError: `max_tokens` is no positive number.

    Example:
        >>> store = GrowingStore("mine.store", tokenizer)  # doctest: +SKIP
        >>> store.add(np.array([5, 6, 7]))
        >>> store.flush()
    """

    def __init__(
        self, path: str | os.PathLike[str], tokenizer: Any, max_tokens: int = 10_000_000
    ) -> None:
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
            raise OptionError(f"max_tokens must be a number of tokens from 1, not {max_tokens!r}")
        self.path = Path(path).absolute()  # the folder of now, wherever the process will end
        self._max_tokens = max_tokens
        self._vocab = len(tokenizer)
        self._tokenizer = described(tokenizer)
        self._waiting: list[NDArray[np.int32]] = []
        self._lock = threading.Lock()
        refuse_foreign(self.path)
        if (self.path / manifest.NAME).exists():
            known = Datastore(self.path)
            known.refuse_other(tokenizer)
            if known.manifest.kind != SuffixIndex.kind:
                raise StoreError(f"{self.path} is of another kind, {known.manifest.kind}")
        self._at_exit = weakref.finalize(self, _flush, weakref.ref(self))

    def add(self, tokens: NDArray[Any]) -> None:
        """Keep a text: int[n]; ids that the tokenizer does not have end it."""
        tokens = np.asarray(tokens, np.int32)
        strange = np.flatnonzero((tokens < 0) | (tokens >= self._vocab))
        tokens = tokens[: strange[0]] if len(strange) else tokens
        if not len(tokens):
            return
        with self._lock:
            self._waiting.append(tokens.copy())
            full = sum(map(len, self._waiting)) >= min(FLUSH, self._max_tokens)
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting; if another process is writing, it goes on waiting."""
        with self._lock:
            if not self._waiting:
                return
            try:
                with writing(self.path):
                    self._write()
            except (OSError, StoreError) as error:
                reason = str(error)  # not the error itself, whose traceback would keep us alive
                logger.warning("answers are not recorded to %s yet: %s", self.path, reason)
                self._waiting = self._waiting[-1000:]  # should that last
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
    """A number that no shard's files have."""
    names = [array.name for shard in shards for array in shard.arrays.values()]
    return 1 + max((int(name[:5]) for name in names if name[:5].isdigit()), default=-1)


def _flush(reference: weakref.ref[GrowingStore]) -> None:
    store = reference()
    if store is not None:
        store.flush()
