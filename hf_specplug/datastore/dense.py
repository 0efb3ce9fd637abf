"""The dense index: the model's state after each token of a corpus, to be searched by likeness.

DReSD (Gritta et al. 2025, arXiv 2502.15572): states are z-scored, projected to their 64 principal
components and normalised, so that inner products are cosines. A state's number is the position of
its token, so what follows is read from the tokens themselves. FAISS keeps and searches the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore import faiss_index
from hf_specplug.datastore.faiss_index import AUTO, PART
from hf_specplug.datastore.index import NO_SETTINGS, Arrays, Index, require, token_dtype
from hf_specplug.errors import StoreError

DIMS = 64
"""Principal components that are kept, as in the paper."""

RECALL = 0.96
"""Of a stored vector's ten nearest: share that a search must find; of an unseen one's, 0.95."""

_EXHAUSTIVE = 1 << 14  # vectors up to which all are compared
_QUERIES = 256  # vectors that it is tuned with
_NEAREST = 10
_SAME = 1e-5  # cosines that differ by less are equal
_GAIN = 0.002  # of recall: what twice as many cells must find more
_BLOCK = 1 << 16
_SHARES = 1e-6  # of the largest deviation: numbers that vary less are left out

Float32 = NDArray[np.float32]


class DenseIndex(Index):
    """tokens uint16[n] or uint32[n] by vocabulary, transform float32[width + 1, dims], index uint8.

    The last row of `transform` is added to what the others make of a state. `index` is a FAISS
    index of n vectors, as `faiss.serialize_index` writes it. `recall` float32[1] is the share of
    the ten nearest neighbours that it finds.

    Attributes:
        index: the FAISS index; it reads the file itself, without a copy in memory.
    """

    kind: ClassVar[str] = "dense"
    names: ClassVar[tuple[str, ...]] = ("tokens", "transform", "index", "recall")
    verified: ClassVar[tuple[str, ...]] = ("index",)
    joined: ClassVar[bool] = True

    @classmethod
    def build(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        raise StoreError("a dense store is made of a model's states: say which model, --model")

    @classmethod
    def of_vectors(
        cls, tokens: NDArray[Any], vectors: Float32, transform: Float32, vocab: int
    ) -> Arrays:
        """The arrays for a part of a corpus.

        Args:
            tokens: int[n], as `Index.build` takes them.
            vectors: float32[n, dims], the model's state after each token as `transformed` makes it;
                0 where a document ends.
            transform: float32[width + 1, dims], as `fitted` makes it.
        """
        index = faiss_index.factory(vectors.shape[1], PART)
        index.add(vectors)
        return {
            "tokens": tokens.astype(token_dtype(vocab)),
            "transform": transform,
            "index": faiss_index.serialized(index),
            "recall": np.ones(1, np.float32),
        }

    @classmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        first = parts[0]
        if any(not np.array_equal(part.transform, first.transform) for part in parts):
            raise StoreError("its shards project states in different ways: build the store again")
        tokens = np.concatenate([part.tokens for part in parts])
        asked = settings.get("index", AUTO)
        name = chosen(len(tokens)) if asked == AUTO else asked
        index = faiss_index.factory(first.index.d, name)
        with faiss_index.said_by_faiss(f"{name!r} cannot index {len(tokens):,} vectors"):
            index.train(_sample(parts, _training(index)))
            for part in parts:
                for vectors in part.blocks():
                    index.add(vectors)
            recall = _tune(index, parts)
        return {
            "tokens": tokens,
            "transform": np.array(first.transform),
            "recall": np.array([recall], np.float32),
            "index": faiss_index.serialized(index),
        }

    def __init__(self, arrays: Arrays, vocab: int) -> None:
        require(arrays, tokens=token_dtype(vocab), index=np.uint8, recall=np.float32)
        self.tokens, self.transform = arrays["tokens"], arrays["transform"].view(np.ndarray)
        self.recall = arrays["recall"]
        self._bytes = arrays["index"].view(np.ndarray)
        shape, dtype = self.transform.shape, self.transform.dtype
        if len(shape) != 2 or dtype != np.float32 or shape[0] < 2:
            raise StoreError(f"a transform is {dtype}{list(shape)}, not float32[width + 1, dims]")
        if len(self.recall) != 1 or not 0.0 <= float(self.recall[0]) <= 1.0:
            raise StoreError("a recall is one number from 0 to 1")
        self.index = faiss_index.read(self._bytes)
        self._probes = self.nprobe
        if self.index.ntotal != len(self.tokens) or self.index.d != shape[1]:
            raise StoreError(
                f"an index holds {self.index.ntotal:,} vectors of {self.index.d} numbers; it must "
                f"hold one of {shape[1]} for each of {len(self.tokens):,} tokens"
            )

    @property
    def width(self) -> int:
        """Numbers in a state of the model that it was made with."""
        return len(self.transform) - 1

    def search(self, vector: Float32, count: int) -> tuple[Float32, NDArray[np.int64]]:
        """The nearest vectors, on this thread only.

        Args:
            vector: float32[dims], as `transformed` makes it of a state.
            count: how many.

        Returns:
            (float32[n] cosines, descending; int64[n] positions in `tokens`, -1 = no more), where n
            is `count`, or less in a smaller store.

        Raises:
            StoreError: the index is damaged.
        """
        with faiss_index.one_thread(), faiss_index.said_by_faiss("an index cannot be searched"):
            near, places = self.index.search(vector[None], min(count, max(1, len(self.tokens))))
        return near[0], places[0]

    @property
    def nprobe(self) -> int:
        """Cells that a search looks into; 0 if the index has none."""
        cells = faiss_index.cells_of(self.index)
        return 0 if cells is None else int(cells.nprobe)

    def hurry(self, more: bool) -> None:
        """Look into half as many cells from now on, or (not `more`) again into twice as many.

        It never is less than an eighth of what the index was built for, nor more than that.
        """
        cells = faiss_index.cells_of(self.index)
        if cells is not None:
            probes = cells.nprobe // 2 if more else 2 * cells.nprobe
            cells.nprobe = min(max(probes, self._probes // 8, 1), self._probes)

    def about(self) -> dict[str, Any]:
        name = faiss_index.name_of(self.index)
        found = {"index": name, "recall@10": round(float(self.recall[0]), 4)}
        return {**found, "nprobe": self.nprobe} if self.nprobe else found

    def blocks(self) -> Iterator[Float32]:
        """All vectors, float32[_, dims], some at a time, as far as the index keeps them."""
        cells = faiss_index.cells_of(self.index)
        with faiss_index.said_by_faiss("an index cannot be read back"):
            if cells is not None:
                cells.make_direct_map()
            for start in range(0, len(self.tokens), _BLOCK):
                yield self.index.reconstruct_n(start, min(_BLOCK, len(self.tokens) - start))

    def check(self, vocab: int) -> None:
        if len(self.tokens) and int(self.tokens.max()) > vocab:
            raise StoreError("a token is not in the vocabulary")
        if not np.isfinite(self.transform).all():
            raise StoreError("its transform is not made of finite numbers")
        for vectors in self.blocks():
            if not np.isfinite(vectors).all():
                raise StoreError("a vector is not made of finite numbers")


def fitted(states: NDArray[Any], dims: int = DIMS) -> Float32:
    """The transform for a sample of states: z-score, then their principal components.

    Args:
        states: float[n, width]; rows that are not finite are passed over.

    Returns:
        float32[width + 1, dims], dims at most the width.

    Raises:
        StoreError: there are fewer than two usable states.

    Example:
        >>> fitted(np.eye(4, dtype=np.float32), dims=2).shape
        (5, 2)
    """
    states = np.asarray(states, np.float32)
    states = states[np.isfinite(states).all(axis=1)]
    if len(states) < 2:
        raise StoreError("too few tokens for a dense store: it needs two at least")
    mean = states.mean(axis=0, dtype=np.float64)
    spread = np.zeros((len(mean), len(mean)))
    for start in range(0, len(states), _BLOCK // 16):  # a copy in float64 would be large
        centred = states[start : start + _BLOCK // 16] - mean
        spread += centred.T @ centred
    deviation = np.sqrt(np.diag(spread) / len(states))
    varies = deviation > _SHARES * deviation.max()
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    _, directions = np.linalg.eigh(spread * np.outer(scale, scale))
    kept = directions[:, ::-1][:, :dims] * scale[:, None]
    return np.vstack([kept, -mean @ kept]).astype(np.float32)


def transformed(states: NDArray[Any], transform: Float32) -> Float32:
    """float32[n, dims] of length 1; 0 where a state is not finite."""
    vectors = np.empty((len(states), transform.shape[1]), np.float32)
    for start in range(0, len(states), _BLOCK):
        part = slice(start, start + _BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):
            raw = np.asarray(states[part], np.float32) @ transform[:-1] + transform[-1]
            length = np.linalg.norm(raw, axis=1, keepdims=True)
            usable = np.isfinite(length) & (length > 0.0)
            vectors[part] = np.where(usable, raw / np.where(usable, length, 1.0), 0.0)
    return vectors


def chosen(count: int) -> str:
    """The FAISS factory string for a number of vectors.

    Example:
        >>> chosen(10_000), chosen(1_000_000)
        ('SQ8', 'IVF4096,SQ8')
    """
    if count <= _EXHAUSTIVE:
        return "SQ8"
    cells = 1 << round(np.log2(4.0 * np.sqrt(count)))
    return f"IVF{cells},SQ8"


def _training(index: Any) -> int:
    """Vectors that an index is trained on."""
    cells = faiss_index.cells_of(index)
    return _BLOCK if cells is None else max(_BLOCK, faiss_index.PER_LIST * int(cells.nlist))


def _sample(parts: Sequence[DenseIndex], count: int) -> Float32:
    """Vectors at even distances."""
    total = sum(len(part.tokens) for part in parts)
    step = max(1, -(-total // max(1, count)))
    return np.concatenate([vectors[::step] for part in parts for vectors in part.blocks()])


def _tune(index: Any, parts: Sequence[DenseIndex]) -> float:
    """Set the least `nprobe` that finds enough of the ten nearest; return what it finds."""
    step = max(1, index.ntotal // _QUERIES)
    own = np.arange(0, index.ntotal, step)[:_QUERIES]
    queries = _at(parts, own)
    usable = np.abs(queries).sum(axis=1) > 0
    own, queries = own[usable], queries[usable]
    count = min(_NEAREST + 1, index.ntotal)  # each finds itself, too
    if not len(own) or count < 2:
        return 1.0
    least = _nearest(parts, queries, count)[:, -1:] - _SAME
    cells = faiss_index.cells_of(index)
    recall, before = 0.0, -1.0
    for probes in (1 << n for n in range(32)):
        if cells is not None:
            cells.nprobe = min(probes, cells.nlist)
        _, found = index.search(queries, count)
        near = np.einsum("qd,qkd->qk", queries, _at(parts, found.ravel()).reshape(*found.shape, -1))
        hits = (near >= least) & (found >= 0) & (found != own[:, None])  # of equal ones any
        recall = float(hits.sum(axis=1).clip(max=count - 1).mean()) / (count - 1)
        if cells is None or recall >= RECALL or probes >= cells.nlist or recall - before < _GAIN:
            break
        before = recall
    return recall


def _nearest(parts: Sequence[DenseIndex], queries: Float32, count: int) -> Float32:
    """float32[n, count], the exact cosines of the nearest vectors, descending."""
    best = np.full((len(queries), count), -np.inf, np.float32)
    for part in parts:
        for vectors in part.blocks():
            both = np.hstack([best, queries @ vectors.T])
            best = -np.sort(-np.partition(both, -count, axis=1)[:, -count:], axis=1)
    return best


def _at(parts: Sequence[DenseIndex], places: NDArray[np.int64]) -> Float32:
    """float32[n, dims], the vectors at places counted through all parts; 0 at -1."""
    vectors = np.zeros((len(places), parts[0].index.d), np.float32)
    begin = 0
    for part in parts:
        inside = (places >= begin) & (places < begin + len(part.tokens))
        if inside.any():
            cells = faiss_index.cells_of(part.index)
            if cells is not None:
                cells.make_direct_map()
            vectors[inside] = part.index.reconstruct_batch(places[inside] - begin)
        begin += len(part.tokens)
    return vectors
