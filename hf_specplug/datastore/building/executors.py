"""Where documents are tokenized and shards are indexed: in this process or on a Ray cluster.

All executors give the same results in the same order, so that the files are identical to the byte.
Only one process writes the datastore: workers need no access to its folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.building.corpus import Document
from hf_specplug.datastore.kinds.contract import Arrays
from hf_specplug.errors import StoreError

Batch = list[tuple[int, Document]]
"""(number from 1, document) of some documents."""

Rows = list[NDArray[np.int32]]
"""The token ids of each document of a batch."""

IndexBuilder = Callable[[NDArray[Any], int], Arrays]
"""Builds the arrays of a shard from (tokens, vocab), such as `Index.build`.

One that runs a model has an attribute `runs_model = True`: Ray workers that call it are kept, and
so is the model that they loaded.
"""

LOCAL = "local"
"""Name of the executor that uses this process."""


class Executor(Protocol):
    """Tokenizes documents and builds indexes.

    Attributes:
        max_pending: shards that may be indexed while the next ones are read.
    """

    max_pending: int

    def tokenize(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        """Yield the batches in order, each with the token ids of its documents."""

    def start_index(
        self, builder: IndexBuilder, tokens: NDArray[Any], vocab: int
    ) -> Callable[[], Arrays]:
        """Start to build the index of a shard. Call what is returned to wait for the arrays."""


class LocalExecutor:
    """Runs in this process; the tokenizer uses threads of its own."""

    max_pending = 0

    def tokenize(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        for batch in batches:
            yield batch, tokenize(tokenizer, [document for _, document in batch])

    def start_index(
        self, builder: IndexBuilder, tokens: NDArray[Any], vocab: int
    ) -> Callable[[], Arrays]:
        arrays = builder(tokens, vocab)
        return lambda: arrays


class RayExecutor:
    """Runs on the cluster of RAY_ADDRESS, or on this machine if that is not set.

    Tasks of dead workers are repeated. Index builders that run a model get workers of their own,
    which keep the model: one per GPU of the cluster, or without GPUs one per core but one.

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
        self.max_pending = max(1, cores - 1)
        self._tokenize = self._ray.remote(max_retries=-1)(tokenize)
        self._index = self._ray.remote(max_retries=-1)(_index)
        # workers hold what they take: one core stays free, or tokenizing would wait forever
        takes = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": int(cores > 1)}
        self._worker = self._ray.remote(max_restarts=-1, max_task_retries=-1, **takes)(_Worker)
        self._workers: deque[Any] = deque()
        self._max_workers = gpus or self.max_pending
        self._max_batches = 2 * cores  # in flight, so that the corpus need not fit into memory

    def tokenize(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        shared = self._ray.put(tokenizer)
        pending: deque[tuple[Batch, Any]] = deque()
        for batch in batches:
            documents = [document for _, document in batch]
            pending.append((batch, self._tokenize.remote(shared, documents)))
            if len(pending) >= self._max_batches:
                first, rows = pending.popleft()
                yield first, self._get(rows)
        for first, rows in pending:
            yield first, self._get(rows)

    def start_index(
        self, builder: IndexBuilder, tokens: NDArray[Any], vocab: int
    ) -> Callable[[], Arrays]:
        runs_model = getattr(builder, "runs_model", False)
        work = self._next_worker().index if runs_model else self._index
        arrays = work.remote(builder, tokens, vocab)
        return lambda: self._get(arrays)  # type: ignore[no-any-return]

    def _next_worker(self) -> Any:
        """A new worker as long as there may be more, then each in turn."""
        self.max_pending = self._max_workers
        full = len(self._workers) == self._max_workers
        self._workers.append(self._workers.popleft() if full else self._worker.remote())
        return self._workers[-1]

    def _get(self, work: Any) -> Any:
        """Wait for a result. What a worker raised is raised here, without Ray's wrapper."""
        try:
            return self._ray.get(work)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error


class _Worker:
    """A process that keeps the model that it has loaded."""

    def index(self, builder: IndexBuilder, tokens: NDArray[Any], vocab: int) -> Arrays:
        return builder(tokens, vocab)


EXECUTORS: dict[str, Callable[[], Executor]] = {LOCAL: LocalExecutor, "ray": RayExecutor}
"""Executors by the name that `--engine` takes."""


def tokenize(tokenizer: Any, documents: Sequence[Document]) -> Rows:
    """The token ids of each document, without special tokens: int32[_] each."""
    if documents and not isinstance(documents[0], str):
        return [np.asarray(document, np.int32) for document in documents]
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(row, dtype=np.int32) for row in encoded]


def _index(builder: IndexBuilder, tokens: NDArray[Any], vocab: int) -> Arrays:
    """Call a builder: what Ray runs must be a function of a module."""
    return builder(tokens, vocab)
