"""Everything that depends on FAISS: making an index by name, mapping it, one-thread searches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

PART = "SQfp16"
"""The index of a shard during a build, before all shards are joined."""

AUTO = "auto"
"""An index chosen by the number of vectors."""

POINTS_PER_CELL = 64
"""Training vectors per cell of an inverted file."""


def factory(dims: int, name: str) -> Any:
    """Make an empty index from a FAISS factory string.

    Args:
        dims: numbers in a vector.
        name: such as "SQ8" or "IVF4096,SQ8".

    Raises:
        StoreError: FAISS does not know the name, or vectors cannot be read back from such an index.
    """
    faiss = _faiss()
    try:
        index = faiss.index_factory(dims, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise StoreError(
            f"{name!r} is not a FAISS index factory string for vectors of {dims} numbers, such as "
            f"IVF4096,SQ8 ({_reason(error)})"
        ) from error
    if not _readable(index):
        raise StoreError(
            f"{name!r} does not let vectors be read back, which joining shards needs: use Flat, "
            "SQ8, SQfp16, PQ..., HNSW... or IVF... (the last with Flat, SQ8, SQfp16 or PQ...)"
        )
    cells = inverted_file(index)
    if cells is not None:
        cells.cp.niter, cells.cp.max_points_per_centroid = 10, POINTS_PER_CELL
        cells.cp.min_points_per_centroid = 1  # no warnings: the recall is measured
    if not index.is_trained and name == PART:
        index.train(np.zeros((1, dims), np.float32))
    return index


def check_name(dims: int, name: str) -> None:
    """Raise StoreError unless `name` is `AUTO` or `factory` accepts it."""
    if name != AUTO:
        factory(dims, name)


_KNOWN = re.compile(
    "Index(Flat|FlatIP|ScalarQuantizer|PQ|HNSW|HNSWFlat|HNSWSQ|HNSWPQ|IVF|IVFFlat|IVFScalarQuantizer"
    "|IVFPQ)"
)


def _readable(index: Any) -> bool:
    """Whether vectors can be read back. Trying in vain would end the process."""
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _readable(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _readable(index.base_index) and _readable(index.refine_index)
    hnsw = getattr(index, "hnsw", None)
    if hnsw is not None and hnsw.nb_neighbors(0) < 2:
        return False
    return _KNOWN.fullmatch(type(index).__name__) is not None


def _reason(error: Exception) -> str:
    """The message of a FAISS error, without the place in its source."""
    return str(error).strip().rpartition(": ")[2].partition("\n")[0]


@contextmanager
def faiss_errors_as_store_errors(what: str) -> Iterator[None]:
    """Raise errors of FAISS as StoreError, with `what` in front of the message."""
    try:
        yield
    except RuntimeError as error:
        raise StoreError(f"{what}: {_reason(error)}") from error


def inverted_file(index: Any) -> Any:
    """The inverted file of an index, None if it has none."""
    try:
        return _faiss().extract_index_ivf(index)
    except RuntimeError:
        return None


def name_of(index: Any) -> str:
    """The factory string of an index, or its class name if FAISS cannot derive one."""
    from faiss.contrib.factory_tools import reverse_index_factory

    try:
        return str(reverse_index_factory(index))  # type: ignore[no-untyped-call]
    except (NotImplementedError, AttributeError, AssertionError):
        return type(index).__name__


def read(data: NDArray[np.uint8]) -> Any:
    """Open an inner-product index that reads `data` in place, without a copy.

    Raises:
        StoreError: it is damaged, or of an unsupported type.
    """
    faiss = _faiss()
    limit = getattr(faiss, "set_deserialization_vector_byte_limit", None)
    if limit is not None:
        limit(16 * len(data) + (1 << 20))  # a damaged length must not take all memory
    try:
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data))
        index = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError, ValueError, AssertionError) as error:
        raise StoreError(f"its FAISS index cannot be read: {_reason(error)}") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise StoreError("its FAISS index has another metric than the inner product")
    if not _readable(index):
        raise StoreError(f"its FAISS index has an unsupported type: {type(index).__name__}")
    return index


def serialized(index: Any) -> NDArray[np.uint8]:
    """The bytes of an index, for `read`: uint8[_]."""
    data: NDArray[np.uint8] = _faiss().serialize_index(index)
    return data


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS use the calling thread only: a single query is too little work to share."""
    faiss = _faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _faiss() -> Any:
    import faiss  # takes 0.3 s: only when it is used

    return faiss
