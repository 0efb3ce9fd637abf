"""What drafting from a store costs: opening, memory, and microseconds per lookup with its tree.

    python -m tests.benchmarks.retrieval my.store recording.safetensors --out result.json

A lookup is all that one step asks of the store: every path of a tree of so many nodes continued.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from hf_specplug.bench import environment
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafters.rest import RestDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.replay.recording import load


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def lookups(store: Datastore, path: str, nodes: int, most: int) -> dict[str, float]:
    """Microseconds of the drafter and of the whole search, per step of recorded answers."""
    drafter = RestDrafter([store])
    mixer = Mixer([drafter.name])
    spent, whole = [], []
    none = np.empty(0, np.int32)
    for text in load(path).texts:
        tokens = np.asarray(text.tokens, np.int32)
        if len(spent) >= most:
            break
        context = Context(tokens[: text.prompt_length], store.manifest.vocab_size)
        search = TreeSearch([drafter], mixer, store.manifest.vocab_size, _raise)
        drafter.begin(context)
        for token in tokens[text.prompt_length :]:
            start = time.perf_counter()
            search.grow(context.last, nodes - 1, 64)
            whole.append(1e6 * (time.perf_counter() - start))
            kept = sum(search.seconds)
            start = time.perf_counter()
            new = np.array([token], np.int32)
            drafter.observe(Step.of_text(none, 0, [], new, None))
            spent.append(1e6 * (kept + time.perf_counter() - start))
            context.append(new)
    half = len(spent) // 2  # the first half warms caches
    return {
        "drafter, median": float(np.median(spent[half:])),
        "drafter, p99": float(np.percentile(spent[half:], 99)),
        "with search, median": float(np.median(whole[half:])),
        "with search, p99": float(np.percentile(whole[half:], 99)),
    }


def _raise(_drafter: object, error: Exception) -> None:
    raise error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store")
    parser.add_argument("recording")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--out")
    args = parser.parse_args()
    before = resident()
    start = time.perf_counter()
    store = Datastore(args.store)
    figures = {
        "tokens": len(store),
        "shards": len(store.shards),
        "bytes per token": store.bytes / len(store),
        "ms to open": 1e3 * (time.perf_counter() - start),
        "MB resident after open": (resident() - before) / 1e6,
    }
    for nodes in (16, 32):
        for name, value in lookups(store, args.recording, nodes, args.steps).items():
            figures[f"us at {nodes} nodes: {name}"] = value
    for name, value in figures.items():
        print(f"{name:40} {value:,.3f}")
    if args.out:
        environment.write(args.out, vars(args), figures=figures)


if __name__ == "__main__":
    main()
