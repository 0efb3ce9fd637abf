"""One timed call of `generate`: the answer, its seconds and its forward passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hf_specplug.bench.methods import Method


@dataclass(frozen=True)
class Generation:
    """What a call gave.

    Attributes:
        rows: ids of each row's answer, its stop token included, padding not.
        seconds: the prompt's forward pass included.
        forwards: forward passes, the prompt's included; each row counts those of its own answer.
    """

    rows: list[list[int]]
    seconds: float
    forwards: int

    @property
    def tokens(self) -> list[int]:
        """Ids of the answer to a single prompt."""
        return self.rows[0]


def generate(
    model: Any,
    prompt: torch.Tensor,
    method: Method,
    settings: dict[str, Any],
    mask: torch.Tensor | None = None,
) -> Generation:
    """Generate with a method.

    Args:
        model: attached, so that `assistant` may be a plug.
        prompt: int64[N, n], token ids.
        method: how to decode.
        settings: further arguments of `generate`, the same for all methods.
        mask: int64[N, n], 0 where a prompt is padded; None if there is no padding.
    """
    mask = torch.ones_like(prompt) if mask is None else mask
    before = _plug_counts(method)
    with _counted(model, method) as count:
        start = time.perf_counter()
        output = model.generate(prompt, attention_mask=mask, **settings, **method.arguments)
        generated = output[:, prompt.shape[1] :].tolist()  # waits for the device
        seconds = time.perf_counter() - start
    stops = model.generation_config.eos_token_id
    known = {stops} if isinstance(stops, int) else set(stops or ())
    rows = [_answer(row, known) for row in generated]
    calls, forwards = (now - then for now, then in zip(_plug_counts(method), before, strict=True))
    if calls:
        forwards += len(rows)  # the prompt's
    return Generation(rows, seconds, forwards or len(count) or sum(map(len, rows)))


def _answer(tokens: list[int], stops: set[int]) -> list[int]:
    """The tokens up to the first stop token, without the padding that follows it."""
    ends = (place for place, token in enumerate(tokens, start=1) if token in stops)
    return tokens[: next(ends, len(tokens))]


def _plug_counts(method: Method) -> tuple[int, int]:
    """Calls that the method's plug has drafted so far, and the forward passes of their rows."""
    plug = method.plug
    return (0, 0) if plug is None else (plug.stats.calls, plug.stats.row_forwards)


@contextmanager
def _counted(model: Any, method: Method) -> Iterator[list[None]]:
    """A list that grows with each forward pass, if nothing else tells their number."""
    count: list[None] = []
    if method.plug is not None or not method.drafts:  # a hook may cost a compiled model its graph
        yield count
        return
    hook = model.register_forward_pre_hook(lambda *_: count.append(None))
    try:
        yield count
    finally:
        hook.remove()


def first_difference(tokens: list[int], expected: list[int]) -> int | None:
    """The index of the first token that differs; None if the lists are equal.

    Example:
        >>> first_difference([1, 3], [1, 2])
        1
    """
    for place, pair in enumerate(zip(tokens, expected, strict=False)):
        if pair[0] != pair[1]:
            return place
    return None if len(tokens) == len(expected) else min(len(tokens), len(expected))
