"""What a dense store finds and costs: recall, microseconds per query, bytes, building, memory.

    python -m tests.benchmarks.dense states.npy --sizes 100000,1000000 --out result.json
    python -m tests.benchmarks.dense --synthetic 5000000

`states.npy` is float16 or float32[n, width], a model's states along a text. A size is how many rows
are stored: the first ones, without 100 windows of 256 rows which the 1000 queries are drawn from
(where the file ends before, as many rows fewer). They are projected, kept in parts, joined, written
and opened as by `specplug build --kind dense`; what tokens belong to them is not known, so 2 bytes
stand for each.

`--synthetic N` makes up N states: N / 200 clusters in 64 dimensions, the k-th as common as k^-0.7.
They are not real: they show what a size costs, and not what would be found in a text.

Queries are timed in a fresh process, on one thread, the whole query and the search alone in turn,
with nothing between them: after a model's forward pass less of the index is in the processor's
caches. Reading states is not counted as building.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hf_specplug.bench import environment
from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.embedding import EMBEDDING_SHARD_TOKENS
from hf_specplug.datastore.building.folder import write_shard
from hf_specplug.datastore.kinds.dense import DenseIndex
from hf_specplug.datastore.kinds.faiss_index import AUTO
from hf_specplug.datastore.kinds.projection import fit_projection, project
from hf_specplug.datastore.manifest import Manifest
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.dense import NEIGHBOURS
from hf_specplug.kernels import dense as kernels
from tests.benchmarks.retrieval import resident

WINDOW, WINDOWS, QUERIES = 256, 100, 1000
SAMPLE = 1 << 16  # what the transform is fitted to, as by a build
REPEATS = 5
VOCAB = 1 << 15

Float32 = NDArray[np.float32]
Places = NDArray[np.int64]


class Synthetic:
    """Made-up states, float16[count, width]; the same ones every time."""

    block, dims, width = 1 << 16, 64, 512

    def __init__(self, count: int) -> None:
        self.count, self.clusters = count, max(1, count // 200)
        rng = np.random.default_rng(0)
        self.centres = rng.standard_normal((self.clusters, self.dims), np.float32)
        self.mixing = rng.standard_normal((self.dims, self.width), np.float32) / 8.0
        common = np.arange(1, self.clusters + 1) ** -0.7
        self.shares = np.cumsum(common / common.sum())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: Places) -> NDArray[np.float16]:
        """The states at ascending places."""
        number = places // self.block
        parts = [self._made(int(n))[places[number == n] % self.block] for n in np.unique(number)]
        return np.concatenate(parts)

    def _made(self, number: int) -> NDArray[np.float16]:
        rng = np.random.default_rng([1, number])
        cluster = np.searchsorted(self.shares, rng.random(self.block))
        near = 0.5 * rng.standard_normal((self.block, self.dims), np.float32)
        return ((self.centres[cluster % self.clusters] + near) @ self.mixing).astype(np.float16)


def split(count: int, size: int) -> tuple[Places, Places]:
    """Rows to store, and rows to ask for."""
    rng = np.random.default_rng(0)
    count = min(count, size + WINDOWS * WINDOW)
    held = rng.choice(count // WINDOW, WINDOWS, replace=False)
    stored = np.ones(count, bool)
    asked = []
    for window in np.sort(held):
        stored[window * WINDOW : (window + 1) * WINDOW] = False
        inside = rng.choice(WINDOW, QUERIES // WINDOWS, replace=False)
        asked.append(window * WINDOW + np.sort(inside))
    return np.flatnonzero(stored), np.concatenate(asked)


def build(
    folder: Path, states: Any, stored: Places, queries: Float32, index: str
) -> tuple[dict[str, float], Places]:
    """Make a store; what it cost, and the places of the nearest neighbours by exact search."""
    sample = np.sort(np.random.default_rng(1).permutation(stored)[:SAMPLE])
    transform = fit_projection(states[sample])
    model = {"name": "unknown", "hash": "0"}
    settings = {"model": model, "layer": -1, "metric": "inner_product", "index": index}
    made_by = {"name": "unknown", "hash": "0"}
    exact = faiss.ResultHeap(len(queries), NEIGHBOURS, keep_max=True)
    looked_for = project(queries, transform)
    seconds = {"projecting": 0.0, "joining": 0.0}
    shards = []
    for number, start in enumerate(range(0, len(stored), EMBEDDING_SHARD_TOKENS)):
        part = states[stored[start : start + EMBEDDING_SHARD_TOKENS]]
        begin = time.perf_counter()
        vectors = project(part, transform)
        arrays = DenseIndex.from_vectors(np.zeros(len(part)), vectors, transform, VOCAB)
        seconds["projecting"] += time.perf_counter() - begin
        shards.append(write_shard(folder, number, arrays, 1, len(part)))
        for first, block in _blocks(vectors):
            most = min(NEIGHBOURS, len(block))
            near, places = faiss.knn(looked_for, block, most, faiss.METRIC_INNER_PRODUCT)
            exact.add_result(near, places + start + first)
    exact.finalize()
    parts = Manifest("dense", VOCAB, made_by, tuple(shards), {}, settings)
    manifest.save(folder, parts)
    begin = time.perf_counter()
    arrays = DenseIndex.join(Datastore(folder).shards, VOCAB, settings)
    seconds["joining"] = time.perf_counter() - begin
    whole = write_shard(folder, len(shards), arrays, len(shards), len(stored))
    manifest.save(folder, parts.with_shards((whole,), {}))
    for shard in shards:
        for array in shard.arrays.values():
            (folder / array.name).unlink()
    millions = len(stored) / 1e6
    costs = {f"s {what} a million": spent / millions for what, spent in seconds.items()}
    return costs, exact.I


def _blocks(vectors: Float32) -> Iterator[tuple[int, Float32]]:
    for first in range(0, len(vectors), 1 << 14):
        yield first, vectors[first : first + (1 << 14)]


def ask(folder: Path, queries: Float32, nearest: Places) -> dict[str, Any]:
    """What queries find and cost, and the memory of it: to be called in a fresh process."""
    _warm(queries.shape[1])
    before = resident()
    begin = time.perf_counter()
    store = Datastore(folder)
    opening = time.perf_counter() - begin
    opened = resident()
    (shard,) = store.shards
    found, vectors = [], []
    for state in queries:
        vector = _vector(shard, state)
        vectors.append(vector)
        found.append(shard.search(vector, NEIGHBOURS)[1])
    searched = resident()
    whole, alone = [], []
    others = vectors[len(vectors) // 2 :] + vectors  # not what was just looked at
    for _ in range(REPEATS):
        for state, other in zip(queries, others, strict=False):
            begin = time.perf_counter()
            shard.search(_vector(shard, state), NEIGHBOURS)
            middle = time.perf_counter()
            shard.search(other, NEIGHBOURS)
            whole.append(middle - begin)
            alone.append(time.perf_counter() - middle)
    about = shard.about()
    return {
        "index": about["index"],
        "nprobe": shard.nprobe,
        "recall@10": _recall(found, nearest, 10),
        "recall@50": _recall(found, nearest, 50),
        "recall@10 that the store says": about["recall@10"],
        "us, whole query, median": 1e6 * float(np.median(whole)),
        "us, whole query, p99": 1e6 * float(np.quantile(whole, 0.99)),
        "us, search alone, median": 1e6 * float(np.median(alone)),
        "us, search alone, p99": 1e6 * float(np.quantile(alone, 0.99)),
        "ms to open": 1e3 * opening,
        "MB resident by opening": (opened - before) / 1e6,
        "MB resident by searching": (searched - opened) / 1e6,
        "bytes per token": store.bytes / len(store),
    }


def _warm(width: int) -> None:
    """Load what is loaded but once: the libraries, and the kernel for a mapped transform."""
    transform = np.ones((width + 1, 64), np.float32)
    transform.flags.writeable = False
    arrays = DenseIndex.from_vectors(np.zeros(1), np.zeros((1, 64), np.float32), transform, VOCAB)
    shard = DenseIndex(arrays, VOCAB)
    shard.search(_vector(shard, np.ones(width, np.float32)), 1)
    shard.about()


def _vector(shard: DenseIndex, state: Float32) -> Float32:
    """As the drafter makes it."""
    vector = np.empty(shard.transform.shape[1], np.float32)
    kernels.project(state, shard.transform, vector)
    return vector


def _recall(found: list[Places], nearest: Places, count: int) -> float:
    """Share of the nearest `count` that are among the first `count` found."""
    both = [len(np.intersect1d(a[:count], b[:count])) for a, b in zip(found, nearest, strict=True)]
    return sum(both) / (count * len(both))


def measure(states: Any, size: int, index: str) -> dict[str, Any]:
    """All figures of a size."""
    stored, asked = split(len(states), size)
    queries = np.asarray(states[asked], np.float32)
    queries = queries[np.isfinite(queries).all(axis=1)]
    with TemporaryDirectory() as folder:
        costs, nearest = build(Path(folder), states, stored, queries, index)
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            answers = process.submit(ask, Path(folder), queries, nearest).result()
    return {"vectors": len(stored), "queries": len(queries), **answers, **costs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("states", nargs="?")
    parser.add_argument("--synthetic", type=int, metavar="N")
    parser.add_argument("--sizes", help="100000,1000000 if not given; N of synthetic ones")
    parser.add_argument("--index", default=AUTO, help="a FAISS index factory string")
    parser.add_argument("--out")
    args = parser.parse_args()
    if (args.states is None) == (args.synthetic is None):
        parser.error("give a file of states, or --synthetic N")
    if args.synthetic:
        states: Any = Synthetic(args.synthetic + WINDOWS * WINDOW)
    else:
        states = np.load(args.states, mmap_mode="r")
    sizes = args.sizes or str(args.synthetic or "100000,1000000")
    results = []
    for size in map(int, sizes.split(",")):
        if len(states) < max(size, 2 * WINDOWS * WINDOW):
            print(f"{size:,}: there are {len(states):,} states only")
            continue
        results.append(measure(states, size, args.index))
        print()
        for name, value in results[-1].items():
            shown = f"{value:,.3f}" if isinstance(value, float) else str(value)
            print(f"{name:32} {shown}", flush=True)
    if args.out:
        environment.write(args.out, vars(args), faiss=faiss.__version__, results=results)


if __name__ == "__main__":
    main()
