"""Stopping criteria of many kinds that see all rows of a step, and a streamer; all keep records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

Stops = Callable[[torch.Tensor, int], Any]
"""A rule: maps (input_ids, how often it has been asked) to what a criterion returns."""


class Recorded(BaseStreamer):  # type: ignore[misc]
    """Records each call of a streamer: tokens as a list, `end` as None."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.got.append((value.dtype, value.device, value.tolist()))

    def end(self) -> None:
        self.got.append(None)


class Asked(StoppingCriteria):  # type: ignore[misc]
    """Keeps what it is given, by reference, and ends rows by a rule.

    Args:
        rule: maps (input_ids, how often it has been asked) to what a criterion returns.
    """

    def __init__(self, rule: Stops) -> None:
        self.rule = rule
        self.given: list[tuple[torch.Tensor, Any]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.given.append((input_ids, scores))
        return self.rule(input_ids, len(self.given))

    def was_asked_as(self, other: Asked) -> bool:
        """Whether this criterion was given the same texts in the same order, and equal scores."""
        if len(self.given) != len(other.given):
            return False
        for (ids, scores), (expected, wanted) in zip(self.given, other.given, strict=True):
            if not torch.equal(ids, expected) or not ids.is_contiguous():
                return False
            if (scores is None) != (wanted is None) or len(scores or ()) != len(wanted or ()):
                return False
            for one, two in zip(scores or (), wanted or (), strict=True):
                if not torch.allclose(one, two, 2e-4, 2e-4):
                    return False
        return True


class SaidByAll:
    """Ends all rows once each has said a text, looked for in its last few tokens, as lm-eval does.

    It keeps which rows have said it, so it must see every step, and each once.
    """

    def __init__(self, letter: str, lookback: int = 3) -> None:
        self.letter, self.lookback = letter, lookback
        self.start = -1
        self.done: list[bool] = []

    def __call__(self, input_ids: torch.Tensor, count: int) -> bool:
        if count == 1:
            self.start, self.done = input_ids.shape[1] - 1, [False] * len(input_ids)
        tail = input_ids[:, self.start :][:, -self.lookback :].tolist()
        said = ["".join(chr(ord("a") + token % 7) for token in row) for row in tail]
        self.done = [
            done or self.letter in text for done, text in zip(self.done, said, strict=True)
        ]
        return all(self.done)


def never(ids: torch.Tensor, count: int) -> Any:
    return ids.new_zeros(len(ids), dtype=torch.bool)


def one_row(ids: torch.Tensor, count: int) -> Any:
    """Ends the second row at the fourth step, and says so for a single step only."""
    ended = never(ids, count)
    ended[1] = count == 4
    return ended


def after_a_neighbour(ids: torch.Tensor, count: int) -> Any:
    """Ends a row when the row before it says one of some tokens: depends on all rows of a step."""
    return (ids[:, -1].roll(1) % 9) == 4


def drawn(first: int) -> Stops:
    """Draws from torch's generator, from some step on; a row ends by chance."""

    def ends(ids: torch.Tensor, count: int) -> Any:
        return torch.rand(len(ids)) < 0.07 if count >= first else never(ids, count)

    return ends


def rewritten(ids: torch.Tensor, count: int) -> Any:
    """Replaces a row's last token at some steps, and an earlier one of another row."""
    if count in (5, 9):
        ids[0, -1] = 11
        ids[1, -3] = 12
    return never(ids, count)


RULES: dict[str, Callable[[], Stops]] = {
    "never": lambda: never,
    "all at once": lambda: lambda ids, count: count == 11,
    "at the first step": lambda: lambda ids, count: count == 1,
    "one row": lambda: one_row,
    "after a neighbour": lambda: after_a_neighbour,
    "said by all": lambda: SaidByAll("c"),
    "by chance": lambda: drawn(1),
    "by chance, late": lambda: drawn(6),
    "rewritten": lambda: rewritten,
}
