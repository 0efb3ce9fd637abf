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

from hf_specplug.datastore.building.corpus import Document
from hf_specplug.datastore.index import Arrays
from hf_specplug.errors import StoreError

Batch = list[tuple[int, Document]]
"""(number from 1, text or its tokens) of some documents."""

Rows = list[NDArray[np.int32]]

Build = Callable[[NDArray[Any], int], Arrays]
"""Makes the arrays of an index of tokens, as `Index.build` does.

One that runs a model says `accelerated = True`; a process that it is called in keeps the model.
"""


LOCAL = "local"
"""The engine that is this process."""


class Executor(Protocol):
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

    What runs a model is done by processes that live on: one for each GPU of the cluster, which it
    has to itself; or, if there is none, one for each core but one, with one thread.

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
        found = self._ray.cluster_resources()
        cores, gpus = int(found.get("CPU", 1)), int(found.get("GPU", 0))
        self.ahead = max(1, cores - 1)
        self._tokenise = self._ray.remote(max_retries=-1)(tokenise)
        self._index = self._ray.remote(max_retries=-1)(index)
        # they keep what they take: a core is left for tokenising, which would wait for ever
        takes = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": int(cores > 1)}
        self._worker = self._ray.remote(max_restarts=-1, max_task_retries=-1, **takes)(_Worker)
        self._workers: deque[Any] = deque()
        self._most = gpus or self.ahead
        self._window = 2 * cores  # batches on their way, so that a corpus need not fit in memory

    def tokenised(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        shared = self._ray.put(tokenizer)
        waiting: deque[tuple[Batch, Any]] = deque()
        for batch in batches:
            texts = [text for _, text in batch]
            waiting.append((batch, self._tokenise.remote(shared, texts)))
            if len(waiting) >= self._window:
                first, rows = waiting.popleft()
                yield first, self._got(rows)
        for first, rows in waiting:
            yield first, self._got(rows)

    def indexing(self, build: Build, tokens: NDArray[Any], vocab: int) -> Callable[[], Arrays]:
        work = self._next().index if getattr(build, "accelerated", False) else self._index
        arrays = work.remote(build, tokens, vocab)
        return lambda: self._got(arrays)  # type: ignore[no-any-return]

    def _next(self) -> Any:
        """A new worker, or when there are as many as there may be, each in turn."""
        self.ahead = self._most
        full = len(self._workers) == self._most
        self._workers.append(self._workers.popleft() if full else self._worker.remote())
        return self._workers[-1]

    def _got(self, work: Any) -> Any:
        """What a worker returned; what it raised is raised here, without its traceback as text."""
        try:
            return self._ray.get(work)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error


class _Worker:
    """A process that keeps the model that it has loaded."""

    def index(self, build: Build, tokens: NDArray[Any], vocab: int) -> Arrays:
        return build(tokens, vocab)


def make(name: str) -> Executor:
    """The engine of a name: "local" or "ray".

    Raises:
        StoreError: another name, or what it needs is missing.
    """
    engines: dict[str, Callable[[], Executor]] = {LOCAL: Local, "ray": OnRay}
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
