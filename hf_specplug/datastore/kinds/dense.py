"""The dense index: the model's hidden state after each token of a corpus, searched by similarity.

DReSD (Gritta et al. 2025, arXiv 2502.15572). The number of a vector is the position of its token,
so that its continuation is read from the tokens. FAISS stores and searches the vectors;
`projection` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.kinds import faiss_index
from hf_specplug.datastore.kinds.contract import NO_SETTINGS, Arrays, Index, require, token_dtype
from hf_specplug.datastore.kinds.faiss_index import AUTO, PART
from hf_specplug.datastore.kinds.projection import Float32
from hf_specplug.datastore.kinds.registry import register_kind
from hf_specplug.errors import StoreError

TARGET_RECALL = 0.96
"""Recall@10 of stored vectors that a search must reach; unseen vectors then reach about 0.95."""

MAX_EXHAUSTIVE = 1 << 14
"""Number of vectors up to which a search compares them all."""

_TUNING_QUERIES = 256
_NEAREST = 10
_SAME = 1e-5  # cosines that differ by less count as equal
_MIN_GAIN = 0.002  # of recall: tuning stops when twice as many cells gain less
_BLOCK = 1 << 16  # vectors that are read back at a time


@register_kind
class DenseIndex(Index):
    """Tokens, and a FAISS index of the hidden states after them.

    - `tokens` uint16[n] or uint32[n] by vocabulary: documents, each followed by the id `vocab`;
    - `transform` float32[width + 1, dims]: the projection; the last row is the offset;
    - `index` uint8[_]: a FAISS index of n vectors, as written by `faiss.serialize_index`;
    - `recall` float32[1]: the share of the ten nearest neighbours that a search finds.

    Attributes:
        index: the FAISS index. It reads the mapped file, without a copy in memory.
    """

    kind: ClassVar[str] = "dense"
    summary: ClassVar[str] = "contexts with similar hidden states; needs --model"
    array_names: ClassVar[tuple[str, ...]] = ("tokens", "transform", "index", "recall")
    verify_on_open: ClassVar[tuple[str, ...]] = ("index",)
    join_after_build: ClassVar[bool] = True
    keeps_texts: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True

    @classmethod
    def build(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        raise StoreError("a dense datastore is built from hidden states: give a model (--model)")

    @classmethod
    def from_vectors(
        cls, tokens: NDArray[Any], vectors: Float32, transform: Float32, vocab: int
    ) -> Arrays:
        """Build the arrays of a shard from projected states.

        Args:
            tokens: int[n], as for `Index.build`.
            vectors: float32[n, dims], the projected hidden state after each token; 0 at the end of
                a document.
            transform: float32[width + 1, dims], the projection.
            vocab: number of token ids.
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
            raise StoreError("its shards have different projections: build the datastore again")
        tokens = np.concatenate([part.tokens for part in parts])
        asked = settings.get("index", AUTO)
        name = auto_index(len(tokens)) if asked == AUTO else asked
        index = faiss_index.factory(first.index.d, name)
        with faiss_index.faiss_errors_as_store_errors(
            f"{name!r} cannot index {len(tokens):,} vectors"
        ):
            index.train(_sample(parts, _training_size(index)))
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
            raise StoreError(f"`transform` is {dtype}{list(shape)}, not float32[width + 1, dims]")
        if len(self.recall) != 1 or not 0.0 <= float(self.recall[0]) <= 1.0:
            raise StoreError("`recall` must be one number from 0 to 1")
        self.index = faiss_index.read(self._bytes)
        self._tuned = self.nprobe
        if self.index.ntotal != len(self.tokens) or self.index.d != shape[1]:
            raise StoreError(
                f"the FAISS index has {self.index.ntotal:,} vectors of {self.index.d} numbers; it "
                f"must have one of {shape[1]} for each of {len(self.tokens):,} tokens"
            )

    @property
    def width(self) -> int:
        """The hidden size of the model."""
        return len(self.transform) - 1

    def search(self, vector: Float32, count: int) -> tuple[Float32, NDArray[np.int64]]:
        """Find the nearest vectors. Uses the calling thread only.

        Args:
            vector: float32[dims], a projected state.
            count: number of neighbours.

        Returns:
            (cosines float32[n], descending; positions in `tokens` int64[n], -1 if there are no
            more), where n is the lesser of `count` and the number of tokens.

        Raises:
            StoreError: the index is damaged.
        """
        with (
            faiss_index.one_thread(),
            faiss_index.faiss_errors_as_store_errors("the index cannot be searched"),
        ):
            near, places = self.index.search(vector[None], min(count, max(1, len(self.tokens))))
        return near[0], places[0]

    @property
    def nprobe(self) -> int:
        """Cells of the inverted file that a search probes; 0 without an inverted file."""
        cells = faiss_index.inverted_file(self.index)
        return 0 if cells is None else int(cells.nprobe)

    def adjust_nprobe(self, faster: bool) -> None:
        """Halve (`faster`) or double the cells that a search probes.

        The number stays between an eighth of the tuned one and the tuned one.
        """
        cells = faiss_index.inverted_file(self.index)
        if cells is not None:
            probes = cells.nprobe // 2 if faster else 2 * cells.nprobe
            cells.nprobe = min(max(probes, self._tuned // 8, 1), self._tuned)

    def about(self) -> dict[str, Any]:
        name = faiss_index.name_of(self.index)
        found = {"index": name, "recall@10": round(float(self.recall[0]), 4)}
        return {**found, "nprobe": self.nprobe} if self.nprobe else found

    def blocks(self) -> Iterator[Float32]:
        """Yield all vectors in blocks float32[_, dims], as exactly as the index stores them."""
        cells = faiss_index.inverted_file(self.index)
        with faiss_index.faiss_errors_as_store_errors("vectors of the index cannot be read back"):
            if cells is not None:
                cells.make_direct_map()
            for start in range(0, len(self.tokens), _BLOCK):
                yield self.index.reconstruct_n(start, min(_BLOCK, len(self.tokens) - start))

    @classmethod
    def check_settings(cls, raw: Any) -> dict[str, Any]:
        """Settings: "model" ("name", "hash"), "layer" of its states, FAISS "index", "metric"."""
        model, layer = raw["model"], raw["layer"]
        if not all(isinstance(model[key], str) for key in ("name", "hash")):
            raise ValueError("a model needs a name and a hash")
        if not all(isinstance(raw[key], str) for key in ("index", "metric")):
            raise ValueError("an index and a metric are named")
        if not isinstance(layer, int) or isinstance(layer, bool) or not -1 <= layer <= 1 << 16:
            raise ValueError(f"{layer!r} is not the number of a layer")
        return dict(raw)

    @classmethod
    def shard_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The FAISS index is chosen when the parts are joined, so it can differ until then."""
        model = settings.get("model", {})
        return {"model": model.get("hash"), "layer": settings.get("layer")}

    def check(self, vocab: int) -> None:
        if len(self.tokens) and int(self.tokens.max()) > vocab:
            raise StoreError("a token id is outside the vocabulary")
        if not np.isfinite(self.transform).all():
            raise StoreError("`transform` has a value that is not finite")
        for vectors in self.blocks():
            if not np.isfinite(vectors).all():
                raise StoreError("a vector has a value that is not finite")


def auto_index(count: int) -> str:
    """The FAISS factory string for a number of vectors.

    Example:
        >>> auto_index(10_000), auto_index(1_000_000)
        ('SQ8', 'IVF4096,SQ8')
    """
    if count <= MAX_EXHAUSTIVE:
        return "SQ8"
    cells = 1 << round(np.log2(4.0 * np.sqrt(count)))
    return f"IVF{cells},SQ8"


def _training_size(index: Any) -> int:
    """The number of vectors to train an index on."""
    cells = faiss_index.inverted_file(index)
    return _BLOCK if cells is None else max(_BLOCK, faiss_index.POINTS_PER_CELL * int(cells.nlist))


def _sample(parts: Sequence[DenseIndex], count: int) -> Float32:
    """About `count` vectors of all parts, evenly spaced."""
    total = sum(len(part.tokens) for part in parts)
    step = max(1, -(-total // max(1, count)))
    return np.concatenate([vectors[::step] for part in parts for vectors in part.blocks()])


def _tune(index: Any, parts: Sequence[DenseIndex]) -> float:
    """Set the smallest `nprobe` that reaches `TARGET_RECALL`. Returns the recall@10 reached."""
    step = max(1, index.ntotal // _TUNING_QUERIES)
    own = np.arange(0, index.ntotal, step)[:_TUNING_QUERIES]
    queries = _vectors_at(parts, own)
    usable = np.abs(queries).sum(axis=1) > 0
    own, queries = own[usable], queries[usable]
    count = min(_NEAREST + 1, index.ntotal)  # each query finds itself, too
    if not len(own) or count < 2:
        return 1.0
    least = _nearest(parts, queries, count)[:, -1:] - _SAME
    cells = faiss_index.inverted_file(index)
    recall, before = 0.0, -1.0
    for probes in (1 << n for n in range(32)):
        if cells is not None:
            cells.nprobe = min(probes, cells.nlist)
        _, found = index.search(queries, count)
        near = np.einsum(
            "qd,qkd->qk", queries, _vectors_at(parts, found.ravel()).reshape(*found.shape, -1)
        )
        hits = (near >= least) & (found >= 0) & (found != own[:, None])  # any of equal ones
        recall = float(hits.sum(axis=1).clip(max=count - 1).mean()) / (count - 1)
        if (
            cells is None
            or recall >= TARGET_RECALL
            or probes >= cells.nlist
            or recall - before < _MIN_GAIN
        ):
            break
        before = recall
    return recall


def _nearest(parts: Sequence[DenseIndex], queries: Float32, count: int) -> Float32:
    """The exact cosines of the nearest vectors, descending: float32[n, count]."""
    best = np.full((len(queries), count), -np.inf, np.float32)
    for part in parts:
        for vectors in part.blocks():
            both = np.hstack([best, queries @ vectors.T])
            best = -np.sort(-np.partition(both, -count, axis=1)[:, -count:], axis=1)
    return best


def _vectors_at(parts: Sequence[DenseIndex], places: NDArray[np.int64]) -> Float32:
    """The vectors at places counted through all parts, 0 at -1: float32[n, dims]."""
    vectors = np.zeros((len(places), parts[0].index.d), np.float32)
    begin = 0
    for part in parts:
        inside = (places >= begin) & (places < begin + len(part.tokens))
        if inside.any():
            cells = faiss_index.inverted_file(part.index)
            if cells is not None:
                cells.make_direct_map()
            vectors[inside] = part.index.reconstruct_batch(places[inside] - begin)
        begin += len(part.tokens)
    return vectors
