"""Criteria and streamers that see all rows of a step: called as plain `generate` calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.batch.test_encoders import START, texts
from tests.batch.test_returned import RETURNED, same
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make

DRAFTERS = list(DEFAULT_DRAFTERS)
LENGTHS = [7, 24, 1, 16, 3, 20, 12, 2]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 32}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "ends": {**GREEDY, **ENDS},
    "sampled": {"do_sample": True, "top_k": 0, "max_new_tokens": 32},
    "sampled ends": {"do_sample": True, "top_p": 0.95, "max_new_tokens": 32, **ENDS},
}
Stops = Callable[[torch.Tensor, int], Any]


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


def always(position: int) -> bool:
    return True


class Recorded(BaseStreamer):  # type: ignore[misc]
    """Records each call of a streamer: tokens as a list, `end` as None."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.got.append((value.dtype, value.device, value.tolist()))

    def end(self) -> None:
        self.got.append(None)


def drafts(inputs: Any, said: torch.Tensor, **start: Any) -> dict[str, Any]:
    """Drafters that are right, wrong, right in some rows, and the default ones.

    Args:
        said: what plain `generate` says where nothing but stop tokens stops it: rows run ahead.
    """
    rows = range(len(said))
    return {
        "right": ReplayRows(inputs, said, **start),
        "wrong": ReplayRows(inputs, said, dict.fromkeys(rows, always), **start),
        "some rows": ReplayRows(inputs, said, dict.fromkeys(rows[::2], always), **start),
        "first": ReplayRows(inputs, said, {0: lambda at: at % 3 == 1}, rank=1, **start),
        "default": DRAFTERS,
    }


def compare(
    model: Any, inputs: Any, rule: Callable[[], Stops], start: Any = None, **settings: Any
) -> dict[str, Any]:
    """Run a batch plainly and with every kind of drafts; returns the plugs by kind."""
    own: dict[str, Any] = {} if start is None else {"start": start}
    free, _ = plain(model, inputs, **settings)
    said = free.sequences if settings.get("return_dict_in_generate") else free
    criterion, streamer = Asked(rule()), Recorded()
    more: dict[str, Any] = {"stopping_criteria": [criterion], "streamer": streamer}
    expected, state = plain(model, inputs, **settings, **more)
    plugs = {}
    for kind, drafter in drafts(inputs, said, **own).items():
        asked, streamed = Asked(rule()), Recorded()
        more = {"stopping_criteria": [asked], "streamer": streamed}
        output, after, plug = plugged(model, inputs, drafter, **settings, **more)
        if settings.get("return_dict_in_generate"):
            assert same(output, expected), kind
        else:
            assert output.tolist() == expected.tolist(), kind
        assert torch.equal(after, state), kind
        assert asked.was_asked_as(criterion), kind
        assert streamed.got == streamer.got, kind
        assert plug.stats.calls == 1, kind  # not run plainly
        assert not plug.stats.dropped
        plugs[kind] = plug
    return plugs


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_criteria_and_streamers(name: str, kind: str, rule: str) -> None:
    model = make(name)
    for count in (2, 5):
        inputs = batch(LENGTHS[:count], seed=count)
        plugs = compare(model, inputs, RULES[rule], seed=count, **KINDS[kind])
        if rule == "never":
            assert plugs["right"].stats.forwards < plugs["wrong"].stats.forwards / 2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["ends", "sampled"])
@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_chains(name: str, kind: str, rule: str) -> None:
    plugs = compare(make(name), batch(LENGTHS[:3]), RULES[rule], **KINDS[kind])
    assert plugs["default"].stats.engines == {"chain, aligned": 1}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["ends", "sampled ends"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoders(name: str, kind: str, rule: str) -> None:
    compare(make(name), texts(3), RULES[rule], start=START, **KINDS[kind])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["greedy", "sampled"])
@pytest.mark.parametrize("name", ["llama", "mistral-window", "bloom"])
def test_scores_logits_and_cache(name: str, kind: str, rule: str) -> None:
    compare(make(name), batch(LENGTHS[:3]), RULES[rule], **{**RETURNED, **KINDS[kind]})
