"""FAISS: indices that are made by name, read where they are, and searched on one thread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

PART = "SQfp16"
"""How a part of a build keeps its vectors, until all parts are joined."""

AUTO = "auto"
"""An index that is chosen by the number of vectors."""

PER_LIST = 64
"""Vectors that a cell of an inverted file is trained on."""


def factory(dims: int, name: str) -> Any:
    """An empty index of a name.

    Raises:
        StoreError: FAISS does not know the name, or its vectors could not be read back.
    """
    faiss = _faiss()
    try:
        index = faiss.index_factory(dims, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise StoreError(
            f"{name!r} is no FAISS index of {dims} numbers: give an index factory string, such as "
            f"IVF4096,SQ8 ({_reason(error)})"
        ) from error
    if not _readable(index):
        raise StoreError(
            f"{name!r} does not keep vectors so that they can be read back and joined: take one of "
            "Flat, SQ8, SQfp16, PQ..., HNSW..., IVF..., with Flat, SQ8, SQfp16 or PQ..."
        )
    cells = cells_of(index)
    if cells is not None:
        cells.cp.niter, cells.cp.max_points_per_centroid = 10, PER_LIST
        cells.cp.min_points_per_centroid = 1  # no warnings: recall is measured
    if not index.is_trained and name == PART:
        index.train(np.zeros((1, dims), np.float32))
    return index


def refuse(dims: int, name: str) -> None:
    """Raise StoreError unless FAISS makes an index of a name that a store can hold."""
    if name != AUTO:
        factory(dims, name)


_KNOWN = re.compile(
    "Index(Flat|FlatIP|ScalarQuantizer|PQ|HNSW|HNSWFlat|HNSWSQ|HNSWPQ|IVF|IVFFlat|IVFScalarQuantizer"
    "|IVFPQ)"
)


def _readable(index: Any) -> bool:
    """Whether its vectors can be read back; FAISS would end the process if asked in vain."""
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
    """What an error of FAISS says, without where in its source."""
    return str(error).strip().rpartition(": ")[2].partition("\n")[0]


@contextmanager
def said_by_faiss(what: str) -> Iterator[None]:
    """Its errors as StoreErrors."""
    try:
        yield
    except RuntimeError as error:
        raise StoreError(f"{what}: {_reason(error)}") from error


def cells_of(index: Any) -> Any:
    """The inverted file in an index, None if there is none."""
    try:
        return _faiss().extract_index_ivf(index)
    except RuntimeError:
        return None


def name_of(index: Any) -> str:
    """The factory string, as far as FAISS can tell it."""
    from faiss.contrib.factory_tools import reverse_index_factory

    try:
        return str(reverse_index_factory(index))  # type: ignore[no-untyped-call]
    except (NotImplementedError, AttributeError, AssertionError):
        return type(index).__name__


def read(data: NDArray[np.uint8]) -> Any:
    """An index of inner products that reads `data` in place.

    Raises:
        StoreError: it is damaged, or of a kind that is not used.
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
        raise StoreError("an index compares vectors by something else than inner products")
    if not _readable(index):
        raise StoreError(f"its FAISS index is of a kind that is not used: {type(index).__name__}")
    return index


def serialized(index: Any) -> NDArray[np.uint8]:
    """What `read` reads."""
    data: NDArray[np.uint8] = _faiss().serialize_index(index)
    return data


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on this thread alone: one query is too little to wake others, which the model needs."""
    faiss = _faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _faiss() -> Any:
    import faiss  # 0.3 s: only for those who use it

    return faiss
