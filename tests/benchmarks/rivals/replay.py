"""Replays a recorded answer through a rival, step by step as `simulate` does, and keeps count."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_specplug.drafters.contract import TopK
from hf_specplug.errors import DraftError
from hf_specplug.replay.recording import RecordedText
from hf_specplug.replay.simulate import accepted_path
from hf_specplug.tree import DraftTree
from tests.benchmarks.rivals.base import Drawn, Rival


@dataclass
class Count:
    """Of one text or several.

    Attributes:
        tokens: emitted, the target's own included.
        forwards: passes of the target after the one over the prompt.
        drafted: nodes of all trees.
    """

    tokens: int = 0
    forwards: int = 0
    drafted: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.tokens + other.tokens,
            self.forwards + other.forwards,
            self.drafted + other.drafted,
        )

    @property
    def accept_length(self) -> float:
        """Mean tokens emitted per forward pass."""
        return self.tokens / max(self.forwards, 1)


@dataclass
class Score:
    """What a rival's replay showed.

    Attributes:
        texts: (task, count) of each, in order.
        seconds: of each step, drafting and learning.
    """

    texts: list[tuple[str, Count]] = field(default_factory=list)
    seconds: array[float] = field(default_factory=lambda: array("d"))

    @property
    def total(self) -> Count:
        """Of all texts."""
        return sum((count for _, count in self.texts), Count())

    def by_task(self) -> dict[str, Count]:
        """Of each task's texts."""
        tasks: dict[str, Count] = defaultdict(Count)
        for task, count in self.texts:
            tasks[task] += count
        return dict(sorted(tasks.items()))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON."""
        total = self.total
        return {
            "tokens_per_forward": total.accept_length,
            "nodes_per_step": total.drafted / max(total.forwards, 1),
            "accepted_per_node": (total.tokens - total.forwards) / max(total.drafted, 1),
            "us_median": 1e6 * float(np.median(self.seconds)) if self.seconds else None,
            "us_p99": 1e6 * float(np.quantile(self.seconds, 0.99)) if self.seconds else None,
            "tasks": {task: count.accept_length for task, count in self.by_task().items()},
            "texts": [[count.tokens, count.forwards, count.drafted] for _, count in self.texts],
        }


def replay(rival: Rival, text: RecordedText, limit: int, vocab_size: int, score: Score) -> None:
    """Draft one answer, taking its tokens for the target's, and add it to `score`.

    Raises:
        DraftError: a draft is no tree.
    """
    prompt, answer = text.prompt_length, text.answer
    rival.begin(text.tokens[:prompt])
    rival.observe(answer[:1], rival.rows(_topk(text, max(0, prompt - len(answer)), prompt)))
    count = Count()
    place = 1
    while place < len(answer):
        depth = len(answer) - place - 1
        start = time.perf_counter()
        draft = rival.draft(limit, depth)
        seconds = time.perf_counter() - start
        tree = checked(rival.tree(draft), depth, vocab_size)
        visited = accepted_path(tree, answer[place:])
        emitted = answer[place : place + len(visited)]
        fed = prompt + place - 1
        rows = rival.rows(_topk(text, fed, fed + len(visited)))
        start = time.perf_counter()
        rival.observe(emitted, rows)
        score.seconds.append(seconds + time.perf_counter() - start)
        count += Count(len(emitted), 1, len(tree))
        place += len(visited)
    score.texts.append((text.task, count))


def _topk(text: RecordedText, begin: int, end: int) -> TopK:
    return TopK(text.topk.ids[begin:end], text.topk.probs[begin:end])


def checked(drawn: Drawn, depth: int, vocab_size: int) -> DraftTree:
    """A draft as a tree, without what is deeper than the answer can become.

    Raises:
        DraftError: tokens and parents do not make a tree of the vocabulary's tokens.
    """
    tokens, parents = (np.fromiter(part, np.int32) for part in drawn)
    if len(tokens) != len(parents):
        raise DraftError(f"a draft has {len(tokens)} tokens, but {len(parents)} parents")
    nodes = list(zip(parents.tolist(), tokens.tolist(), strict=True))
    for place, (parent, token) in enumerate(nodes):
        if not -1 <= parent < place:
            raise DraftError(
                f"parents come before their children: node {place} of a draft cannot have parent "
                f"{parent}; -1 is the last accepted token"
            )
        if not 0 <= token < vocab_size:
            raise DraftError(
                f"node {place} of a draft is token {token}; they go from 0 to {vocab_size - 1}"
            )
    if len(set(nodes)) < len(nodes):
        raise DraftError("a draft names a token twice after the same one; join such children")
    ones = np.ones(len(tokens), np.float32)
    tree = DraftTree(tokens, parents, ones, np.zeros(len(tokens), np.uint16))
    if len(tree) <= depth:
        return tree
    return tree.select(np.flatnonzero(tree.depths() <= depth))
