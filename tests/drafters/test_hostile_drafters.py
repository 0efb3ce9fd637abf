"""Whatever a drafter does, the output stays right; it is reported once and dropped for the call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Step
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import VOCAB, make, prompt

Expand = Callable[[Frontier], Any]


class Hostile(Drafter):
    """Answers `expand` with whatever it was made for."""

    name: ClassVar[str] = "hostile"

    def __init__(self, expand: Expand, priors: Any = None) -> None:
        self.priors = np.array([0.9], np.float32) if priors is None else priors
        self._expand = expand
        self.asked = 0

    def expand(self, frontier: Frontier) -> Any:
        self.asked += 1
        return self._expand(frontier)


def rows(*triples: tuple[int, int, int]) -> Any:
    return np.array(triples, np.int32).reshape(-1, 3)


def boom(frontier: Frontier) -> Any:
    raise RuntimeError("boom")


def stop(frontier: Frontier) -> Any:
    raise StopIteration


EXPANDS: dict[str, Expand] = {
    "raises": boom,
    "raises StopIteration": stop,
    "None": lambda f: None,
    "a list": lambda f: [(0, 1, 0)],
    "float rows": lambda f: np.array([[0.0, 1.0, 0.0]]),
    "NaN rows": lambda f: np.full((3, 3), np.nan),
    "int64 rows": lambda f: np.zeros((1, 3), np.int64),
    "object rows": lambda f: np.array([[object()] * 3]),
    "flat rows": lambda f: np.zeros(3, np.int32),
    "flat rows, none": lambda f: np.zeros(0, np.int32),
    "four columns": lambda f: np.zeros((1, 4), np.int32),
    "id = V": lambda f: rows((int(f.nodes[0]), VOCAB, 0)),
    "huge id": lambda f: rows((int(f.nodes[0]), 2**31 - 1, 0)),
    "negative id": lambda f: rows((int(f.nodes[0]), -1, 0)),
    "unknown node": lambda f: rows((10**6, 1, 0)),
    "negative node": lambda f: rows((-1, 1, 0)),
    "a node of another round": lambda f: rows((int(f.nodes[0]), 1, 0), (int(f.nodes[0]) + 1, 1, 0)),
    "unknown bucket": lambda f: rows((int(f.nodes[0]), 1, 1)),
    "negative bucket": lambda f: rows((int(f.nodes[0]), 1, -1)),
    "a million nodes": lambda f: np.zeros((10**6, 3), np.int32),
}


@pytest.mark.parametrize("kind", EXPANDS)
@pytest.mark.parametrize("company", [False, True])
def test_bad_expand(kind: str, company: bool, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 30, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    hostile = Hostile(EXPANDS[kind])
    drafters = [hostile, "context"] if company else [hostile]
    with caplog.at_level(logging.WARNING, "hf_specplug"):
        output, _, plug = plugged(model, inputs, drafters, **settings)
    assert output.tolist() == expected.tolist()
    assert "hostile" in plug.stats.dropped
    assert hostile.asked == 1  # dropped at the first offence
    assert len([record for record in caplog.records if "hostile" in record.message]) == 1
    if company:
        assert plug.stats.drafted_by["context"] > 0


@pytest.mark.parametrize(
    "priors",
    [
        np.array([np.nan], np.float32),
        np.array([np.inf], np.float32),
        np.array([0.0], np.float32),
        np.array([-0.5], np.float32),
        np.array([1.5], np.float32),
        np.array([0.5]),
        np.array([], np.float32),
        np.array([[0.5]], np.float32),
        "0.5",
        None.__class__,
    ],
)
def test_bad_priors(priors: Any) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, max_new_tokens=20, do_sample=False)
    hostile = Hostile(lambda f: rows((int(f.nodes[0]), 1, 0)), priors)
    drafters = [hostile, "context"]
    output, _, plug = plugged(model, inputs, drafters, max_new_tokens=20, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert set(plug.stats.drafted_by) - {"context"} <= {"hostile"}
    assert plug.stats.drafted_by["context"] == plug.stats.drafted > 0
    assert "priors" in plug.stats.dropped["hostile"]
    assert hostile.asked == 0


class BadMoments(Hostile):
    """Fails in `begin` or `observe`, at the n-th time."""

    def __init__(self, moment: str, turn: int) -> None:
        super().__init__(lambda f: rows((int(f.nodes[0]), 1, 0)))
        self.moment, self.turn = moment, turn

    def _count(self, moment: str) -> None:
        if moment == self.moment:
            self.turn -= 1
            if self.turn < 0:
                raise ValueError(f"no {moment} today")

    def begin(self, context: Context) -> None:
        self._count("begin")

    def observe(self, step: Step) -> None:
        self._count("observe")


@pytest.mark.parametrize(("moment", "turn"), [("begin", 0), ("observe", 0), ("observe", 3)])
def test_bad_moments(moment: str, turn: int) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, max_new_tokens=20, do_sample=False)
    hostile = BadMoments(moment, turn)
    output, _, plug = plugged(model, inputs, hostile, max_new_tokens=20, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert f"no {moment} today" in plug.stats.dropped["hostile"]


class Vandal(Hostile):
    """Writes into everything that it is handed."""

    def __init__(self, what: str) -> None:
        super().__init__(self.spoil)
        self.what = what

    def spoil(self, frontier: Frontier) -> Any:
        answer = rows((int(frontier.nodes[0]), 1, 0))
        if self.what == "pool":
            frontier.pool[:, 1:6] = 7
        if self.what == "nodes":
            frontier.nodes[:] = 3
        return answer

    def begin(self, context: Context) -> None:
        self.context = context
        if self.what == "context":
            context.append([1, 2, 3])

    def observe(self, step: Step) -> None:
        if self.what == "text":
            self.context.tokens[:] = 5
        if self.what == "step":
            step.tokens[:] = 10**6
        if self.what == "rows" and step.topk is not None:
            step.topk.ids[:] = 10**6
        if self.what == "context":
            self.context.append([9])


@pytest.mark.parametrize("what", ["pool", "nodes", "text", "step", "rows", "context"])
def test_a_vandal_changes_nothing(what: str) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, max_new_tokens=30, do_sample=False)
    for company in ([], ["context", "recycling"]):
        drafters = [Vandal(what), *company]
        output, _, plug = plugged(model, inputs, drafters, max_new_tokens=30, do_sample=False)
        assert output.tolist() == expected.tolist()
        assert set(plug.stats.dropped) <= {"hostile"}  # the others are not blamed for it


def test_it_is_asked_again_in_the_next_call() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    hostile = Hostile(boom)
    plug = attach(model, drafters=[hostile, "context"])
    for _ in range(3):
        model.generate(**inputs, max_new_tokens=10, do_sample=False)
    detach(model)
    assert hostile.asked == 3
    assert isinstance(plug, SpecPlug)


def test_interrupts_are_not_swallowed() -> None:
    def interrupt(frontier: Frontier) -> Any:
        raise KeyboardInterrupt

    model, inputs = make("mistral-window"), prompt(make("mistral-window"))
    with pytest.raises(KeyboardInterrupt):
        plugged(model, inputs, Hostile(interrupt), max_new_tokens=10, do_sample=False)
    output, _, plug = plugged(model, inputs, ["context"], max_new_tokens=10, do_sample=False)
    expected, _ = plain(model, inputs, max_new_tokens=10, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert plug.stats.calls == 1
