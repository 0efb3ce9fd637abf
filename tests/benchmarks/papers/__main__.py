"""Tokens per forward pass of seven papers' drafts and ours, on a model's own and others' answers.

    python -m tests.benchmarks.papers --model MODEL --prompts spec_bench.jsonl,humaneval.jsonl \
        --answers answers.jsonl --work FOLDER --out docs/bench/papers.json

`--prompts` are answered by the model itself, greedily; `--answers` were written by other models.
Recordings and datastores are kept in FOLDER: a second run continues where the first has stopped.
No published form and no drafter of ours knows anything of what is tested: see `texts`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch

from hf_specplug.bench import environment
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters import priors as shipped
from hf_specplug.drafters.contract import Int32
from hf_specplug.drafters.stand import SUCCESSORS
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.published import PUBLISHED
from hf_specplug.published.hierarchy import Hierarchy
from hf_specplug.published.static_tree import Shape, StaticSearch, wide_tree
from hf_specplug.replay.compare import reading
from hf_specplug.replay.learn_priors import learn
from hf_specplug.replay.recording import Recording
from hf_specplug.replay.simulate import Result, accepted_path, replay
from hf_specplug.replay.tuning import most_effective
from hf_specplug.tree import DraftTree
from tests.benchmarks.papers import texts

DEFAULT = ("context", "recycling", "stand")
ALL = (*DEFAULT, "rest", "dense", "trigram", "phrases")

METHODS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "rest": (("rest",), 65),
    "dresd": (("dense",), 101),
    "token-recycling": (("recycling",), 81),
    "aded": (("trigram",), 65),
    "hierarchy": (("context", "phrases", "rest"), 29),
    "stand": (("stand",), 81),
    "rasd": (("context", "rest", "recycling", "stand"), None),
}
"""By paper: its drafters, and the tokens that its forward pass checks; None: not known."""

SIZES = (16, 32)


class Timed(Hierarchy):
    """Hierarchy Drafting, with the time that each database takes, or would take if it were asked.

    Attributes:
        steps, times_asked: steps, and steps in which each database was asked.
        spent, spared: seconds of each database when it was asked, and when it was not.
    """

    steps: ClassVar[int]
    times_asked: ClassVar[list[int]]
    spent: ClassVar[list[float]]
    spared: ClassVar[list[float]]

    @classmethod
    def reset(cls) -> None:
        cls.steps, cls.times_asked = 0, [0, 0, 0]
        cls.spent, cls.spared = [0.0] * 3, [0.0] * 3

    def grow(self, root: int, *args: Any, **settings: Any) -> DraftTree:
        before = list(self.asked)
        tree = super().grow(root, *args, **settings)
        type(self).steps += 1
        for level, name in enumerate(self.uses):
            drafter, column = self._expert(name)  # type: ignore[misc]
            if self.asked[level] > before[level]:
                self.times_asked[level] += 1
                self.spent[level] += self.seconds[column]
            else:
                start = time.perf_counter()
                self._ask(level, drafter, root)
                self.spared[level] += time.perf_counter() - start
        return tree

    @classmethod
    def figures(cls) -> dict[str, Any]:
        whole = sum(cls.spent)
        return {
            "share of steps that asked each level": [n / cls.steps for n in cls.times_asked],
            "us_per_step": 1e6 * whole / cls.steps,
            "us_per_step if all were asked": 1e6 * (whole + sum(cls.spared)) / cls.steps,
        }


def shaped(search: type[StaticSearch], tree: Shape, hits: Any = None) -> type[StaticSearch]:
    """A static search in another tree; counts accepted nodes in `hits`."""

    class Shaped(search):  # type: ignore[misc, valid-type]
        @classmethod
        def shape(cls) -> Shape:
            return tree

        def learn(self, emitted: Int32) -> None:
            super().learn(emitted)
            if hits is not None:
                visited = np.array(accepted_path(self.draft, emitted)[1:], np.intp)
                hits[self.filled[visited - 1]] += 1

    return Shaped


class Comparison:
    """The stores, and what was learned from the answers that are not tested."""

    def __init__(self, stores: list[Datastore], learned: Recording) -> None:
        self.stores = stores
        self.priors = learn(learned, ALL, stores)[0]
        with self.left_out():
            self.trees = {name: self._trees(name, learned) for name in ("stand", "token-recycling")}

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Let drafters and mixers start from these priors instead of those that are shipped."""
        with mock.patch.object(shipped, "_priors", return_value=self.priors):
            yield

    def _trees(self, paper: str, learned: Recording) -> dict[int, Shape]:
        """By size, the static tree whose nodes were accepted most often, as STAND tunes its own."""
        search: Any = PUBLISHED[paper]
        start = wide_tree(625, SUCCESSORS) if paper == "stand" else search.shape()
        hits = np.zeros(len(start[0]), np.int64)
        self._replayed(learned, METHODS[paper][0], 0, shaped(search, start, hits))
        sizes = [size - 1 for size in (*SIZES, 81)]
        trees = {size: most_effective(start, hits, size) for size in sizes}
        return trees if paper == "stand" else {**trees, 80: start}

    def _replayed(
        self, recording: Recording, names: tuple[str, ...], nodes: int, search: type[TreeSearch]
    ) -> Result:
        drafters = reading(names, self.stores)
        mixer = Mixer([drafter.name for drafter in drafters])
        return replay(recording, drafters, mixer, nodes or 2, search=search)

    def published(self, recording: Recording, paper: str, nodes: int) -> dict[str, Any]:
        search: Any = PUBLISHED[paper]
        if paper in self.trees:
            search = shaped(search, self.trees[paper][nodes - 1])
        if paper == "hierarchy":
            Timed.reset()
            search = Timed
        result = self._replayed(recording, METHODS[paper][0], nodes, search)
        figures = {"form": paper, "published": True, "nodes": nodes, **summary(result)}
        return {**figures, **(Timed.figures() if paper == "hierarchy" else {})}

    def ours(self, recording: Recording, names: tuple[str, ...], nodes: int) -> dict[str, Any]:
        result = self._replayed(recording, names, nodes, TreeSearch)
        form = "+".join(names)
        return {"form": form, "published": False, "nodes": nodes, **summary(result)}

    def compared(self, recording: Recording) -> list[dict[str, Any]]:
        """Every form at every size."""
        rows = []
        with self.left_out():
            for paper, (names, own) in METHODS.items():
                for nodes in (*SIZES, *([own] if own else [])):
                    rows.append({"paper": paper, **self.published(recording, paper, nodes)})
                    rows.append({"paper": paper, **self.ours(recording, names, nodes)})
                    print(
                        *(
                            f"{row['form']:32} {row['nodes']:4} {row['tokens_per_step']:.3f}"
                            for row in rows[-2:]
                        ),
                        sep="\n",
                        flush=True,
                    )
            for names in (DEFAULT, ALL):
                rows += [{"paper": None, **self.ours(recording, names, nodes)} for nodes in SIZES]
        return rows


def summary(result: Result) -> dict[str, Any]:
    figures = result.to_dict()
    kept = {key: figures[key] for key in ("tokens_per_step", "nodes_per_step", "us_per_step")}
    tasks = {task: of["tokens_per_step"] for task, of in figures["tasks"].items()}
    return {**kept, "tasks": tasks}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="JSON-lines files, with commas")
    parser.add_argument("--answers", required=True, help="JSON lines with prompt and response")
    parser.add_argument("--work", required=True, help="a folder for recordings and datastores")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(args.work)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        texts.OWN: texts.split(args.prompts.split(","), texts.OWN, folder),
        texts.OTHERS: texts.split([args.answers], texts.OTHERS, folder),
    }
    stored = files[texts.OTHERS].pop("stored")
    recordings = {whose: texts.recorded(args.model, of, folder) for whose, of in files.items()}
    own = recordings[texts.OWN]
    stores = texts.stores(args.model, own["stored"], stored, folder)
    both = [text for of in recordings.values() for text in of["learned"].texts]
    learned = Recording(own["tested"].model, own["tested"].vocab_size, both)
    comparison = Comparison(stores, learned)
    results = {}
    for whose, of in recordings.items():
        print(f"\n{whose}: {len(of['tested'])} answers of {of['tested'].answer_tokens} tokens")
        results[whose] = {
            "answers": len(of["tested"]),
            "tokens": of["tested"].answer_tokens,
            "forms": comparison.compared(of["tested"]),
        }
    arguments = {**vars(args), "model": Path(args.model).name, "work": Path(args.work).name}
    for name in ("prompts", "answers", "out"):
        arguments[name] = ",".join(Path(path).name for path in arguments[name].split(","))
    environment.write(
        args.out,
        arguments,
        stores={store.manifest.kind: len(store) for store in stores},
        learned={"answers": len(learned), "tokens": learned.answer_tokens},
        results=results,
    )


if __name__ == "__main__":
    main()
