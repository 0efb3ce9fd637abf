"""The cost of each drafter: microseconds per expanded node, and per step that it observes.

    python -m tests.benchmarks.drafters recording.safetensors --datastore my.store --nodes 32

All drafters draft together, as in a plug, so each of them expands the nodes of all. `gumbel` gets
random noise.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from hf_specplug.bench import environment
from hf_specplug.datastore.opening import open_all
from hf_specplug.drafters.contract import Drafter, Frontier, Int32, Step
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.replay.compare import reading
from hf_specplug.replay.recording import Recording, load
from hf_specplug.replay.simulate import replay


class Timed:
    """Times two methods of a drafter."""

    def __init__(self, drafter: Drafter) -> None:
        self.expands: list[tuple[int, float]] = []
        self.observes: list[float] = []
        expand, observe = drafter.expand, drafter.observe

        def timed_expand(frontier: Frontier) -> Int32:
            start = time.perf_counter()
            rows = expand(frontier)
            self.expands.append((len(frontier.nodes), time.perf_counter() - start))
            return rows

        def timed_observe(step: Step) -> None:
            start = time.perf_counter()
            observe(step)
            if len(step.visited):  # not the prompt
                self.observes.append(time.perf_counter() - start)

        drafter.expand = timed_expand  # type: ignore[method-assign]
        drafter.observe = timed_observe  # type: ignore[method-assign]

    def figures(self) -> dict[str, float]:
        nodes = sum(count for count, _ in self.expands)
        whole = sum(seconds for _, seconds in self.expands)
        wide = [1e6 * seconds / count for count, seconds in self.expands if count >= 8]
        return {
            "us_per_node": 1e6 * whole / nodes,
            "us_per_node_of_8": float(np.median(wide)) if wide else float("nan"),
            "nodes_per_call": nodes / len(self.expands),
            "us_per_step_learned": 1e6 * float(np.median(self.observes)),
            "us_per_step_learned_p99": 1e6 * float(np.quantile(self.observes, 0.99)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recording")
    parser.add_argument("--datastore", action="append", default=[])
    parser.add_argument("--drafters", default="context,recycling,rest,trigram,stand,phrases,gumbel")
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--out")
    args = parser.parse_args()

    recording = load(args.recording)
    texts = Recording(recording.model, recording.vocab_size, recording.texts[: args.texts])
    noise = np.random.default_rng(0).random((8, recording.vocab_size))

    class Noisy(TreeSearch):
        first = 0

        def grow(self, *arguments: Any, **named: Any) -> Any:
            self.first = (self.first + 1) % 8
            named["noise"] = noise, self.first
            return super().grow(*arguments, **named)

    drafters = reading(args.drafters.split(","), open_all(args.datastore))
    replay(texts, drafters, Mixer([d.name for d in drafters]), args.nodes, search=Noisy)  # warm up
    timed = {drafter.name: Timed(drafter) for drafter in drafters}
    replay(texts, drafters, Mixer([d.name for d in drafters]), args.nodes, search=Noisy)
    results = {name: one.figures() for name, one in timed.items()}
    print(f"{'us':12} per node  of 8 or more  nodes per call   learning a step  p99")
    for name, row in results.items():
        print(
            f"{name:12} {row['us_per_node']:8.2f} {row['us_per_node_of_8']:13.2f} "
            f"{row['nodes_per_call']:15.1f} {row['us_per_step_learned']:17.1f} "
            f"{row['us_per_step_learned_p99']:5.1f}"
        )
    if args.out:
        environment.write(args.out, vars(args), results=results)


if __name__ == "__main__":
    main()
