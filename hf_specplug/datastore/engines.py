"""Where texts are tokenised and indexed: in this process, or on a Ray cluster.

Both give the same results in the same order, so that the files are the same to the byte. A store is
written by one process only, whatever the engine: workers need no access to its folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.corpus import Document
from hf_specplug.datastore.index import Arrays
from hf_specplug.errors import StoreError

Batch = list[tuple[int, Document]]
"""(number from 1, text or its tokens) of some documents."""

Rows = list[NDArray[np.int32]]

Build = Callable[[NDArray[Any], int], Arrays]
"""Makes the arrays of an index of tokens, as `Index.build` does."""


class Engine(Protocol):
    """What a build needs done.

    Attributes:
        ahead: shards that may be indexed while the next ones are read.
    """

    ahead: int

    def tokenised(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        """The batches in order, with the tokens of each text."""

    def indexing(self, build: Build, tokens: NDArray[Any], vocab: int) -> Callable[[], Arrays]:
        """Begin to make an index of `tokens`; the result is had by calling what is returned.

        Args:
            build: makes it, such as `Index.build` of a kind.
        """


class Local:
    """In this process, by the tokenizer's own threads."""

    ahead = 0

    def tokenised(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        for batch in batches:
            yield batch, tokenise(tokenizer, [text for _, text in batch])

    def indexing(self, build: Build, tokens: NDArray[Any], vocab: int) -> Callable[[], Arrays]:
        arrays = build(tokens, vocab)
        return lambda: arrays


class OnRay:
    """On the cluster that RAY_ADDRESS names, or else on this machine; dead workers are replaced.

    Raises:
        StoreError: ray is not installed.
    """

    def __init__(self) -> None:
        try:
            self._ray = import_module("ray")
        except ImportError as error:
            raise StoreError("--engine ray needs ray: pip install 'hf-specplug[ray]'") from error
        if not self._ray.is_initialized():
            self._ray.init(logging_level="error", include_dashboard=False)
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        self.ahead = max(1, cores - 1)
        self._tokenise = self._ray.remote(max_retries=-1)(tokenise)
        self._index = self._ray.remote(max_retries=-1)(index)
        self._window = 2 * cores  # batches on their way, so that a corpus need not fit in memory

    def tokenised(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        shared = self._ray.put(tokenizer)
        waiting: deque[tuple[Batch, Any]] = deque()
        for batch in batches:
            texts = [text for _, text in batch]
            waiting.append((batch, self._tokenise.remote(shared, texts)))
            if len(waiting) >= self._window:
                first, rows = waiting.popleft()
                yield first, self._ray.get(rows)
        for first, rows in waiting:
            yield first, self._ray.get(rows)

    def indexing(self, build: Build, tokens: NDArray[Any], vocab: int) -> Callable[[], Arrays]:
        arrays = self._index.remote(build, tokens, vocab)
        return lambda: self._ray.get(arrays)  # type: ignore[no-any-return]


def make(name: str) -> Engine:
    """The engine of a name: "local" or "ray".

    Raises:
        StoreError: another name, or what it needs is missing.
    """
    engines: dict[str, Callable[[], Engine]] = {"local": Local, "ray": OnRay}
    if name not in engines:
        raise StoreError(f"--engine is one of {', '.join(engines)}, not {name!r}")
    return engines[name]()


def tokenise(tokenizer: Any, texts: Sequence[Document]) -> Rows:
    """The tokens of each text, without special ones."""
    if texts and not isinstance(texts[0], str):
        return [np.asarray(text, np.int32) for text in texts]
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(row, dtype=np.int32) for row in encoded]


def index(build: Build, tokens: NDArray[Any], vocab: int) -> Arrays:
    """The index of a part of a corpus."""
    return build(tokens, vocab)
