"""Learn what `hf_specplug/priors.json` holds: what evidence is worth, and how drafters mix.

    specplug record --model PATH --texts traces.jsonl --out traces.safetensors
    python -m tests.benchmarks.learn_priors traces.safetensors --out hf_specplug/priors.json

Only numbers leave the recording: one probability per evidence bucket, and the mixer's weights.
Texts that were sampled with a known seed (named "seed N", see `many_samples`) teach what noise is
worth, too. A further drafter is added to the known ones with `--only`, a store with `--datastore`:

    python -m tests.benchmarks.learn_priors mine.safetensors --drafters context,recycling,rest \
        --datastore my.store --only rest --out hf_specplug/priors.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from hf_specplug.datastore.store import Datastore, open_all
from hf_specplug.drafters.contract import Drafter, Int32
from hf_specplug.drafters.gumbel import GumbelDrafter
from hf_specplug.drafters.hierarchy import HierarchyDrafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import give
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.kernels import dense, gumbel, ngram, phrases, retrieval, successors, tree, trigram
from hf_specplug.kernels import mixer as mixing
from hf_specplug.kernels.buckets import PROB_BUCKETS
from hf_specplug.replay import simulate
from hf_specplug.replay.recording import RecordedText, Recording, load
from hf_specplug.tree import DraftTree
from hf_specplug.verify.noise import POSITIONS, draw

GRIDS = {  # evidence buckets as tables, whose rows go from weaker to stronger evidence
    "context": [
        (ngram.LENGTHS, ngram.LONGEST_BUCKETS),
        (ngram.LENGTHS, ngram.SHORTER_BUCKETS),
    ],
    "dense": [(dense.LENGTHS, dense.VOTE_BUCKETS)],
    "gumbel": [(1, gumbel.SCORES)] * gumbel.RANKS,
    "phrases": [(phrases.LENGTHS, phrases.SHARES)] * 2,
    "recycling": [(8, 8)],
    "rest": [
        (retrieval.LENGTHS, retrieval.LONGEST_BUCKETS),
        (retrieval.LENGTHS, retrieval.SHORTER_BUCKETS),
    ],
    "stand": [(successors.VISITS, PROB_BUCKETS)] * successors.GRAM_LENGTHS,
    "trigram": [(trigram.SUPPORTS, PROB_BUCKETS)] * trigram.STRENGTHS,
}
PRIORS = Path(simulate.__file__).parent / "priors.json"
STRENGTH = 20.0  # a bucket without data is worth what its row's weaker neighbour is
NODES = 25


class Counting(TreeSearch):
    """Counts how often candidates of each bucket came true, and sums up the mixer's weights."""

    hits = np.zeros(0)
    seen = np.zeros(0)
    weights: Any = 0.0
    steps = 0
    vocab_size = 0
    foreseen: Any = None  # the noise of the whole answer, if it was sampled
    place = 1

    @classmethod
    def following(cls, traces: Iterable[RecordedText]) -> Iterator[RecordedText]:
        """The traces; those called "seed N" with the noise that they were sampled with on a CPU."""
        for trace in traces:
            cls.foreseen = None
            if trace.name.startswith("seed "):
                generator = torch.Generator().manual_seed(int(trace.name.split()[1]))
                count = len(trace.answer) + POSITIONS
                cls.foreseen = np.stack([draw(generator, cls.vocab_size) for _ in range(count)])
            yield trace

    def grow(self, *args: Any, **named: Any) -> DraftTree:
        if self.foreseen is not None:
            self.noise = (self.foreseen[self.place : self.place + POSITIONS], 0)
        return super().grow(*args, **named)

    def learn(self, emitted: Int32) -> None:
        self.place += len(emitted)
        if not self._grown:
            return
        cls = type(self)
        if len(cls.hits) != len(self._table):
            cls.hits, cls.seen = np.zeros(len(self._table)), np.zeros(len(self._table))
        node = 0
        for token in emitted.tolist():
            child = int(self._pool[node, tree.FIRST]) if self._pool[node, tree.ROUND] else 0
            node = 0
            while child:
                buckets = self._evidence[child][self._evidence[child] > 0]
                cls.seen[buckets] += 1
                if self._pool[child, tree.TOKEN] == token:
                    cls.hits[buckets] += 1
                    node = child
                child = int(self._pool[child, tree.NEXT])
            if not node:
                break
        super().learn(emitted)
        cls.weights = cls.weights + self._mixer.weights
        cls.steps += 1


def smoothed(hits: Any, seen: Any) -> Any:
    """Hit rates [rows, columns]; sparse cells lean on the row before, the first on the column."""
    rates = np.empty(hits.shape)
    above = (hits.sum(0) + 1) / (seen.sum(0) + 30)
    for row in range(len(hits)):
        above = rates[row] = (hits[row] + STRENGTH * above) / (seen[row] + STRENGTH)
    return rates.clip(5e-4, 0.999)


def made(names: list[str], stores: list[Datastore]) -> list[Drafter]:
    drafters = create(names)
    give(stores, drafters)
    return drafters


def has_own(drafter: Drafter) -> bool:
    """Whether it has priors of its own; those of a hierarchy are its levels'."""
    return not isinstance(drafter, HierarchyDrafter)


def run(
    recording: Recording, names: list[str], stores: list[Datastore], start: dict[str, Any]
) -> dict[str, Any]:
    """One pass: what `priors.json` should hold after it."""
    Counting.hits = Counting.seen = np.zeros(0)
    Counting.weights, Counting.steps = 0.0, 0
    Counting.vocab_size = recording.vocab_size
    drafters = made(names, stores)
    for drafter in drafters:
        if has_own(drafter):
            drafter.priors = np.array(start[drafter.name], np.float32)
    with patch("hf_specplug.drafting.mixer.learned", start.__getitem__):
        mixer = Mixer(names)
    result = simulate.replay(recording, drafters, mixer, NODES, None, Counting, Counting.following)
    print(f"accept length {result.total.accept_length:.3f}, {result.total.tokens} tokens")
    found: dict[str, Any] = {}
    begin = 1
    for drafter in drafters:
        table = []
        for rows, columns in GRIDS.get(drafter.name, [(1, len(drafter.priors))]):
            part = slice(begin, begin + rows * columns)
            begin += rows * columns
            grid = smoothed(
                Counting.hits[part].reshape(rows, columns),
                Counting.seen[part].reshape(rows, columns),
            )
            table += grid.ravel().round(4).tolist()
        if has_own(drafter):
            found[drafter.name] = table
    weights = (Counting.weights / Counting.steps).round(3)
    of_drafters = {name: weights[:, 3 * d : 3 * d + 3] for d, name in enumerate(names)}
    found["mixer"] = {
        "drafters": {name: of_drafters[name].tolist() for name in names},
        # a drafter about which nothing was learned is taken for an average one
        "others": np.mean(list(of_drafters.values()), axis=0).round(3).tolist(),
        "bias": weights[:, -3].tolist(),
        "noise": weights[:, -2:].tolist(),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recording")
    parser.add_argument("--drafters", default="context,recycling")
    parser.add_argument("--datastore", action="append", default=[])
    parser.add_argument("--only", help="leave what is known of the other drafters as it is")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    recording = load(args.recording)
    names = args.drafters.split(",")
    traces = list(recording.texts)
    random.Random(0).shuffle(traces)  # else the weights would be those of the last task
    recording = Recording(recording.model, recording.vocab_size, traces)
    stores = open_all(args.datastore)
    known: dict[str, Any] = json.loads(PRIORS.read_text(encoding="utf-8"))
    found: dict[str, Any] = dict(known)
    if args.only is None:
        drafters = filter(has_own, made(names, stores))
        found |= {each.name: np.full(len(each.priors), 0.1) for each in drafters}
        found["mixer"] = {
            "drafters": {},
            "others": [[0.5, 1.5, 0.2]] * mixing.SETS,
            "bias": [-3.0, -2.0, -1.5, -1.0],
            "noise": [[0.3, -1.0]] * mixing.SETS,
        }
    for _ in range(args.passes):
        found = {**known, **run(recording, names, stores, found)}
    if args.only is not None:
        learned = found["mixer"]["drafters"][args.only]
        mixer = {**known["mixer"], "drafters": {**known["mixer"]["drafters"], args.only: learned}}
        if args.only == GumbelDrafter.name:
            mixer["noise"] = found["mixer"]["noise"]
        found = {**known, args.only: found[args.only], "mixer": mixer}
    if args.out:
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(found[key])}" for key in found)
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
