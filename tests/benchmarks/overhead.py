"""Where the host time of a step goes: microseconds beside the forward pass, by part.

    python -m tests.benchmarks.overhead --nodes 16,32 --out overhead.json
    python -m tests.benchmarks.overhead --model PATH --prompts FILE --datastore my.store --static

The host time of a step is the time between two forward passes of a live call, whose caches the
forward passes have evicted. "replayed" repeats the call with the recorded logits instead of forward
passes: caches stay warm, as where an accelerator computes. In both cases, a run of its own splits
the time into parts, which inflates it by their timing.
`--filler N` times the loop alone, on texts of N tokens, with trees of wrong tokens.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_specplug import DEMO_MODEL, SpecPlug, attach
from hf_specplug import decode as loop
from hf_specplug.bench import environment
from hf_specplug.drafters.contract import Drafter, Frontier, Int32
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.hf import loading
from hf_specplug.hf.prompts import prompt_ids, read_prompts
from hf_specplug.kernels import mixer as mixing
from hf_specplug.kernels import rounds, tree
from hf_specplug.telemetry.stats import Stats
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.eager import EagerEngine
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.static import StaticEngine

_QUESTIONS = (
    "Write a Python function that merges two sorted lists, and explain it.",
    "A train travels 60 miles in 1.5 hours. How far does it travel in 4 hours? Explain.",
    "Explain the difference between a list and a tuple, with examples.",
    "Write a short story about a lighthouse keeper.",
)


class Filler(Drafter):
    """Three wrong children for every node, so that each tree is full."""

    name: ClassVar[str] = "filler"

    def __init__(self) -> None:
        self.priors = np.array([0.3, 0.25, 0.2], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        rows = [(node, 300 + k, k) for node in frontier.nodes.tolist() for k in range(3)]
        return np.array(rows, np.int32)


class Gaps:
    """The time between the forward passes of a call, split into parts.

    The time of a timed function within another is its own only. What no part takes is "between".

    Args:
        logits: recorded logits, to return instead of running the model after prefill.

    Attributes:
        steps: of each step, seconds by part, and "all".
        forwards: seconds of each forward pass.
        logits: of each forward pass after prefill.
    """

    def __init__(self, logits: Sequence[torch.Tensor] = ()) -> None:
        self.logits: list[torch.Tensor] = []
        self._recorded = list(reversed(logits))
        self.steps: list[dict[str, float]] = []
        self.forwards: list[float] = []
        self._now: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._ended = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted for a part."""

        def call(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **named)
            finally:
                took = time.perf_counter() - start
                self._now[part] += took - self._inner.pop()
                self._inner[-1] += took

        return call

    def forward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The forward pass of the model: it ends one gap and begins the next."""

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            if self._ended:
                gap = start - self._ended
                self.steps.append(
                    {**self._now, "all": gap, "between": gap - sum(self._now.values())}
                )
            self._now.clear()
            try:
                if self._ended and self._recorded:
                    return _filled(self._recorded.pop(), named["past_key_values"])
                outputs = function(*args, **named)
                if self._ended:
                    self.logits.append(outputs.logits)
                return outputs
            finally:
                self._ended = time.perf_counter()
                self._inner[-1] += self._ended - start
                self.forwards.append(self._ended - start)

        return call

    def begin(self) -> None:
        """A new call: what precedes its first forward pass is not a step."""
        self._ended = 0.0

    def medians(self) -> dict[str, float]:
        """Microseconds per step by part, medians."""
        parts = sorted({part for step in self.steps for part in step})
        by_part = {part: [step.get(part, 0.0) for step in self.steps] for part in parts}
        return {part: round(1e6 * statistics.median(times), 1) for part, times in by_part.items()}


def _filled(logits: torch.Tensor, cache: Any) -> CausalLMOutputWithPast:
    """Recorded outputs. The cache grows as in the forward pass, but by zeros."""
    for index, layer in enumerate(cache.layers):
        heads, width = layer.keys.shape[1], layer.keys.shape[3]
        states = layer.keys.new_zeros(1, heads, logits.shape[1], width)
        cache.update(states, states, index)
    return CausalLMOutputWithPast(logits=logits.clone(), past_key_values=cache)


@contextmanager
def watched(gaps: Gaps, model: Any, plug: SpecPlug, parts: bool) -> Iterator[None]:
    """Time the gaps between the model's forward passes; `parts`: and what they consist of."""
    with ExitStack() as stack:
        stack.callback(setattr, model, "forward", model.forward)
        model.forward = gaps.forward(model.forward)
        if parts:
            places: list[tuple[Any, str, str]] = [
                (Engine, "step", "inputs and masks"),
                (EagerEngine, "keep", "cache"),
                (StaticEngine, "keep", "cache"),
                (Verifier, "accept", "acceptance"),
                (Outputs, "topk", "top-k rows"),
                (Budget, "fit", "budget"),
                (Budget, "observe", "budget"),
                (TreeSearch, "grow", "search"),
                (rounds, "run", "search: kernel"),
                (tree, "insert", "search: kernels"),
                (tree, "best", "search: kernels"),
                (mixing, "mix", "search: mixing"),
                (mixing, "learn", "learning: mixing"),
                (loop, "_report", "statistics"),
            ]
            for drafter in plug.drafters:
                places.append((type(drafter), "expand", f"look-up: {drafter.name}"))
                places.append((type(drafter), "observe", f"learning: {drafter.name}"))
            for owner, name, part in places:
                function = getattr(owner, name)
                stack.callback(setattr, owner, name, function)
                setattr(owner, name, gaps.timed(part, function))
        yield


def _run(
    gaps: Gaps, model: Any, inputs: list[torch.Tensor], plug: SpecPlug, parts: bool, **settings: Any
) -> Gaps:
    """Generate the answers of all prompts."""
    with watched(gaps, model, plug, parts):
        for ids in inputs:
            gaps.begin()
            model.generate(ids, custom_generate=plug, **settings)
    return gaps


def _figures(totals: Gaps, split: Gaps, stats: Stats) -> dict[str, Any]:
    return {
        "ms forward": round(1e3 * statistics.median(totals.forwards), 2),
        "us host": totals.medians()["all"],
        "us by phase, means": {
            phase: round(1e6 * stats.seconds[phase] / stats.forwards)
            for phase in ("draft", "accept", "observe")
        },
        "us by part, timed one by one": split.medians(),
    }


def measure(
    model: Any, inputs: list[torch.Tensor], plug: Callable[[], SpecPlug], **settings: Any
) -> dict[str, Any]:
    """The host time of each step, live and replayed; each run has a new plug."""
    _run(Gaps(), model, inputs, plug(), False, **settings)  # compiles, tries and packs
    row: dict[str, Any] = {}
    logits: list[torch.Tensor] = []
    for kind in ("live", "replayed"):
        plain, split = plug(), plug()
        totals = _run(Gaps(logits), model, inputs, plain, False, **settings)
        parts = _run(Gaps(logits), model, inputs, split, True, **settings)
        stats = plain.stats
        row["nodes per step"] = round(stats.drafted / stats.forwards + 1, 1)
        row["tokens per step"] = round(stats.accept_length, 3)
        row[kind] = _figures(totals, parts, stats)
        logits = totals.logits
        if settings.get("cache_implementation"):  # its forward pass is not replayed
            break
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--prompts", help="JSON lines (default: four questions)")
    parser.add_argument("--nodes", default="16,32", help="tokens per forward pass, with commas")
    parser.add_argument("--datastore", action="append", default=[])
    parser.add_argument("--drafters", help="names, with commas (default: the plug's own)")
    parser.add_argument("--filler", default="", help="lengths of texts, with commas")
    parser.add_argument("--static", action="store_true", help="the static engine")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = loading.load(args.model, dtype="float32")
    attach(model)
    prompts = _prompts(args, model, tokenizer)
    settings = {"max_new_tokens": args.tokens, "do_sample": False}
    if args.static:
        settings["cache_implementation"] = "static"
    rows = []
    for nodes in map(int, args.nodes.split(",")):
        for label, inputs in prompts.items():
            named = {"drafters": args.drafters.split(",")} if args.drafters else {}
            if args.filler:
                named = {"drafters": Filler()}
            plug = functools.partial(SpecPlug, nodes=nodes, datastores=args.datastore, **named)
            row = {"text": label, "nodes": nodes, **measure(model, inputs, plug, **settings)}
            print(json.dumps(row, indent=1), flush=True)
            rows.append(row)
    if args.out:
        environment.write(args.out, vars(args), rows=rows)


def _prompts(args: argparse.Namespace, model: Any, tokenizer: Any) -> dict[str, list[torch.Tensor]]:
    """The prompts int64[1, n] by label."""
    if args.filler:
        lengths = [int(length) for length in args.filler.split(",")]
        return {f"{n} tokens": [torch.randint(3, 300, (1, n))] for n in lengths}
    texts: list[str] = list(_QUESTIONS)
    if args.prompts:
        texts = [line["prompt"] for _, line in read_prompts(args.prompts, 1)]
    return {"answers": [torch.tensor([prompt_ids(tokenizer, text)]) for text in texts]}


if __name__ == "__main__":
    main()
