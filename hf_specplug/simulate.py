"""Replays of recorded texts through any set of drafters: no model runs, so it takes seconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_specplug.budget import Budget
from hf_specplug.drafters.base import Context, Drafter, Int32, Step, TopK
from hf_specplug.mixer import Mixer
from hf_specplug.recording import Recording, Trace
from hf_specplug.stats import Stats
from hf_specplug.tree import EMPTY, DraftTree, TreeSearch

Cost = Callable[[int, int], float]
"""Seconds of a forward pass over (width, context length) tokens."""


@dataclass
class Result:
    """What a replay showed: of all traces (`total`), and by task.

    Attributes:
        seconds: what the cost curve says that the forward passes would have taken, by task.
        plain_seconds: the same without drafting.
        draft_seconds: measured time of the search and its drafters.
    """

    total: Stats = field(default_factory=Stats)
    by_task: dict[str, Stats] = field(default_factory=lambda: defaultdict(Stats))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    plain_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    draft_seconds: float = 0.0


def replay(
    recording: Recording,
    drafters: Sequence[Drafter],
    nodes: int | str = 16,
    cost: Cost | None = None,
    mixer: Mixer | None = None,
    progress: Callable[[Iterable[Trace]], Iterable[Trace]] = lambda traces: traces,
) -> Result:
    """Draft every recorded answer as `generate` would, taking the recorded tokens for the target's.

    Only nodes on the path that was taken have rows: what the target would have said at the others
    is not recorded, so recycling drafters learn a little less than in earnest.
    """
    mixer = mixer or Mixer([drafter.name for drafter in drafters])
    budget = Budget(nodes, len(drafters))
    result = Result()
    for trace in progress(recording):
        _replay(trace, recording.vocab_size, drafters, mixer, budget, cost, result)
    return result


def _replay(
    trace: Trace,
    vocab_size: int,
    drafters: Sequence[Drafter],
    mixer: Mixer,
    budget: Budget,
    cost: Cost | None,
    result: Result,
) -> None:
    def fail(drafter: Drafter, error: Exception) -> None:
        raise error

    prompt, answer = trace.prompt_length, trace.answer
    context = Context(trace.tokens[:prompt], vocab_size)
    search = TreeSearch(drafters, mixer, vocab_size, fail)
    for drafter in drafters:
        drafter.begin(context)
    context.append(answer[:1])
    rows = np.arange(max(0, prompt - len(answer)), prompt)
    _observe(search, trace, rows, np.empty(0, np.int32), answer[:1], np.zeros(len(rows), np.uint16))
    place = 1
    while place < len(answer):
        start = time.perf_counter()
        tree, asked = EMPTY, budget.ask()
        if any(asked):
            root, depth = int(answer[place - 1]), len(answer) - place - 1
            tree = search.grow(root, budget.limit, depth, ask=asked)
        tree = budget.fit(tree, prompt + place)
        result.draft_seconds += time.perf_counter() - start
        visited = walk(tree, answer[place:])
        emitted = answer[place : place + len(visited)]
        for stats in (result.total, result.by_task[trace.task]):
            stats.observe(tree, visited, search.names)
        if cost is not None:
            seconds = cost(len(tree) + 1, prompt + place)
            budget.observe(
                tree, len(visited) - 1, prompt + place, seconds, asked, search.seconds
            )
            result.seconds[trace.task] += seconds
            result.plain_seconds[trace.task] += len(emitted) * cost(1, prompt + place)
        start = time.perf_counter()
        search.learn(emitted)
        context.append(emitted)
        rows = np.arange(prompt + place - 1, prompt + place - 1 + len(visited))
        sources = np.concatenate([np.zeros(1, np.uint16), tree.sources])[visited]
        _observe(search, trace, rows, np.arange(len(rows), dtype=np.int32), emitted, sources)
        result.draft_seconds += time.perf_counter() - start
        place += len(visited)


def walk(tree: DraftTree, answer: Int32) -> list[int]:
    """The path of a tree that an answer takes: indices, 0 = root."""
    children = {
        (parent, token): i + 1
        for i, (parent, token) in enumerate(
            zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)
        )
    }
    visited = [0]
    for token in answer.tolist():
        child = children.get((visited[-1] - 1, token))
        if child is None or len(visited) == len(answer):
            break
        visited.append(child)
    return visited


def _observe(
    search: TreeSearch, trace: Trace, rows: Any, visited: Int32, emitted: Int32, sources: Any
) -> None:
    topk = TopK(trace.topk.ids[rows], trace.topk.probs[rows])
    step = Step(trace.tokens[rows], sources, visited, emitted.copy(), topk)
    for drafter in search.drafters:
        drafter.observe(step)
