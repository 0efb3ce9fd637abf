"""Simulation: recorded texts are replayed through any set of drafters, without the model."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafting.budget import MAX_NODES, Budget
from hf_specplug.drafting.draft import draft
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import RecordingError
from hf_specplug.published import completed, search_class
from hf_specplug.replay.recording import RecordedText, Recording
from hf_specplug.replay.row import ReplayedRow
from hf_specplug.replay.row import accepted_path as accepted_path
from hf_specplug.telemetry.stats import Stats

Texts = Iterable[RecordedText]

COSTS = {
    # milliseconds of a forward pass by the number of tokens that it checks, measured
    "h200-graph": {1: 8.05, 8: 9.15, 16: 9.55, 32: 9.67, 64: 9.94, 128: 10.45},  # 8B bf16, ctx 512
    "h200-eager": {1: 28.6, 8: 25.2, 16: 25.6, 32: 25.7, 64: 25.5, 128: 24.6},
    "cpu-2core": {1: 14.3, 6: 19.3, 8: 18.7, 12: 20.1, 16: 21.7, 24: 24.8, 32: 28.8, 64: 51.6},
    "cpu-2core-bf16": {1: 9.3, 6: 9.8, 8: 10.0, 12: 10.9, 16: 11.8, 24: 13.5, 32: 15.1, 64: 22.6},
}
"""Built-in cost curves: the shape of Llama-3-8B on one H200, and a 32 M Llama on two CPU cores."""


@dataclass(frozen=True)
class Cost:
    """A cost curve: seconds of a forward pass by its width, linear between measured points.

    Attributes:
        widths: int[n], tokens that a forward pass checks, ascending.
        seconds: float[n], what it takes.

    Example:
        >>> Cost(np.array([1.0, 3.0]), np.array([0.01, 0.02]))(2)
        0.015
    """

    widths: Any
    seconds: Any

    @classmethod
    def of(cls, points: Mapping[int, float]) -> Cost:
        """The curve through points {width in tokens: milliseconds}."""
        widths = sorted(points)
        return cls(np.array(widths), np.array([points[width] / 1e3 for width in widths]))

    def __call__(self, width: int) -> float:
        return float(np.interp(width, self.widths, self.seconds))


def cost_curve(name: str | os.PathLike[str]) -> Cost:
    """A built-in cost curve by its name in `COSTS`, or from a JSON file {"1": ms, "8": ms, ...}.

    Raises:
        RecordingError: there is no such curve or file, or its numbers are not a curve.

    Example:
        >>> cost_curve("h200-graph")(1)
        0.00805
    """
    points: Any = COSTS.get(str(name))
    if points is None:
        try:
            with open(name, encoding="utf-8") as file:
                points = {int(width): float(ms) for width, ms in json.load(file).items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise RecordingError(
                f"a cost curve is one of {sorted(COSTS)} or a JSON file of milliseconds by width, "
                f'{{"1": 8.0, "8": 9.1}}; {name} is neither: {error}'
            ) from error
    if not points or min(points) < 1 or min(points.values()) <= 0:
        raise RecordingError(f"the cost curve {name} needs widths of at least 1 and positive times")
    return Cost.of(points)


@dataclass
class Result:
    """The result of a replay.

    Attributes:
        total: counters over all texts.
        by_task: counters of each task.
        seconds: by task, what the forward passes cost by the cost curve.
        plain_seconds: by task, what plain decoding costs by the cost curve.
        draft_seconds: by task, what search, drafters and learning took here (measured).
    """

    total: Stats = field(default_factory=Stats)
    by_task: dict[str, Stats] = field(default_factory=lambda: defaultdict(Stats))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    plain_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    draft_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def speed(self, task: str | None = None) -> float | None:
        """Speedup over plain decoding, drafting time included; None without a cost curve."""
        if not self.seconds:
            return None
        tasks = list(self.by_task) if task is None else [task]
        spent = sum(self.seconds[task] + self.draft_seconds[task] for task in tasks)
        return sum(self.plain_seconds[task] for task in tasks) / spent

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain numbers, strings, lists and dicts, for JSON."""
        steps = max(self.total.forwards, 1)
        return {
            "tokens_per_step": self.total.accept_length,
            "nodes_per_step": self.total.drafted / steps,
            "us_per_step": 1e6 * sum(self.draft_seconds.values()) / steps,
            "ece": self.total.calibration().ece,
            "speed": self.speed(),
            "tasks": {
                task: {"tokens_per_step": stats.accept_length, "speed": self.speed(task)}
                for task, stats in self.by_task.items()
            },
            "stats": self.total.to_dict(),
        }


def simulate(
    recording: Recording,
    drafters: Sequence[str | Drafter],
    nodes: int | str,
    cost: Cost | None = None,
    published: str | None = None,
    progress: Callable[[Texts], Texts] = lambda texts: texts,
) -> Result:
    """Replay a recording as if a model generated its answers, drafting with the given drafters.

    Args:
        recording: what a model found likely along some texts.
        drafters: names, or drafters as they are.
        nodes: the maximum number of tokens that a forward pass checks; "auto" for the size that
            maximises goodput by the cost curve.
        cost: the cost curve of a forward pass.
        published: draft as a paper does, by its name.
        progress: wraps the texts, to show progress.

    Raises:
        OptionError: an unknown drafter, number of nodes or paper.
        RecordingError: `nodes` is "auto" without a cost curve.

    Example:
        >>> recording = load("my.safetensors")  # doctest: +SKIP
        >>> simulate(recording, ["context", "recycling"], 16).total.accept_length  # doctest: +SKIP
        2.1
    """
    if nodes == "auto" and cost is None:
        raise RecordingError('nodes "auto" needs a cost curve, from which the size is chosen')
    made = completed(create(drafters), published)
    mixer = Mixer([drafter.name for drafter in made])
    return replay(recording, made, mixer, nodes, cost, search_class(published), progress)


def replay(
    recording: Recording,
    drafters: Sequence[Drafter],
    mixer: Mixer,
    nodes: int | str = 16,
    cost: Cost | None = None,
    search: type[TreeSearch] = TreeSearch,
    progress: Callable[[Texts], Texts] = lambda texts: texts,
) -> Result:
    """Draft every recorded answer as `generate` would, taking the recorded tokens as the model's.

    Only accepted nodes have top-k rows: what the model finds likely after rejected ones is not
    recorded. Drafters that learn from these rows therefore learn slightly less than in live
    decoding.

    Args:
        search: grows the trees; a paper's, or one that counts.

    See `simulate` for the other arguments.
    """
    budget = Budget(nodes, len(drafters))
    result = Result()
    for text in progress(recording):
        grower = search(drafters, mixer, recording.vocab_size, fail)
        _replay(text, recording.vocab_size, grower, budget, cost, result)
    return result


def fail(drafter: Drafter, error: Exception) -> None:
    """What a replay does with a drafter that breaks its contract: raise the error."""
    raise error


def _replay(
    text: RecordedText,
    vocab_size: int,
    search: TreeSearch,
    budget: Budget,
    cost: Cost | None,
    result: Result,
) -> None:
    row = ReplayedRow(text, vocab_size, search)
    while not row.finished:
        start = time.perf_counter()
        decision = draft(search, budget, row.root, row.length, MAX_NODES, row.depth)
        tree = decision.tree
        result.draft_seconds[text.task] += time.perf_counter() - start
        visited = row.accepted(tree)
        for stats in (result.total, result.by_task[text.task]):
            stats.observe(tree, visited, search.names)
        if cost is not None:
            seconds = cost(len(tree) + 1)
            budget.observe(decision, len(visited) - 1, row.length, seconds)
            result.seconds[text.task] += seconds
            result.plain_seconds[text.task] += len(visited) * cost(1)
        start = time.perf_counter()
        row.advance(len(visited))
        result.draft_seconds[text.task] += time.perf_counter() - start
