"""The draft step, shared by the decoding loop and the simulator, and the drafters it drops."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import numpy as np
import pytest

from hf_specplug import attach, detach
from hf_specplug.drafters.contract import NO_NOISE, Context, Drafter, Frontier, Int32, Noise
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.draft import draft
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from tests.helpers.runs import plain
from tests.helpers.zoo import make, prompt

VOCAB = 20


class Next(Drafter):
    """Proposes the last token + 1, and records the noise of each frontier."""

    name: ClassVar[str] = "next"

    def __init__(self) -> None:
        self.priors = np.array([0.5], np.float32)
        self.noise: list[Noise] = []

    def expand(self, frontier: Frontier) -> Int32:
        self.noise.append(frontier.noise)
        last = [frontier.path(node)[-1:] or [frontier.root] for node in frontier.nodes.tolist()]
        rows = [[n, t[0] + 1, 0] for n, t in zip(frontier.nodes.tolist(), last, strict=True)]
        return np.array([row for row in rows if row[1] < VOCAB], np.int32).reshape(-1, 3)


class Broken(Next):
    name: ClassVar[str] = "broken"

    def expand(self, frontier: Frontier) -> Int32:
        return self.nothing_of_this_name  # type: ignore[attr-defined, no-any-return]


def begun(drafter: Drafter, suppressed: tuple[int, ...] = ()) -> TreeSearch:
    search = TreeSearch([drafter], Mixer([drafter.name]), VOCAB, lambda *_: None)
    search.begin(Context([3], VOCAB, suppressed=suppressed))
    return search


def test_a_path() -> None:
    decision = draft(begun(Next()), Budget(6), 3, 1, 100, 100, chain=True)
    assert decision.tree.tokens.tolist() == [4, 5, 6, 7, 8]
    assert list(decision.asked) == [True]


@pytest.mark.parametrize(("room", "depth", "length"), [(2, 9, 2), (9, 3, 3), (0, 9, 0), (9, 0, 0)])
def test_no_more_than_there_is_room_for(room: int, depth: int, length: int) -> None:
    decision = draft(begun(Next()), Budget(6), 3, 1, room, depth, chain=True)
    assert decision.tree.tokens.tolist() == [4, 5, 6, 7, 8][:length]


def test_suppressed_tokens_are_not_drafted() -> None:
    decision = draft(begun(Next(), suppressed=(5,)), Budget(6), 3, 1, 9, 9, chain=True)
    assert decision.tree.tokens.tolist() == [4]


def test_a_step_without_a_draft_teaches_the_mixer_nothing() -> None:
    """Its picks must not train on the tree of the previous step, which the search still holds."""
    drafter = Next()
    mixer = Mixer([drafter.name])
    search = TreeSearch([drafter], mixer, VOCAB, lambda *_: None)
    search.begin(Context([3], VOCAB))
    draft(search, Budget(6), 3, 1, 9, 9)
    search.learn(np.array([4], np.int32))
    before = mixer.weights.copy()
    decision = draft(search, Budget(6), 4, 2, 0, 9)
    assert not len(decision.tree)
    assert not any(decision.asked)
    search.learn(np.array([11], np.int32))
    assert (mixer.weights == before).all()


def test_noise_is_asked_for_only_where_something_is_drafted() -> None:
    rows = np.full((2, VOCAB), 0.5), 1
    asked = []

    def noise() -> Noise:
        asked.append(1)
        return rows

    drafter = Next()
    draft(begun(drafter), Budget(4), 3, 1, 9, 9, noise=noise)
    assert all(seen is rows for seen in drafter.noise)
    draft(begun(drafter), Budget(4), 3, 1, 0, 9, noise=noise)
    draft(begun(drafter), Budget(1), 3, 1, 9, 9, noise=noise)
    assert len(asked) == 1
    silent = Next()
    draft(begun(silent), Budget(4), 3, 1, 9, 9)
    assert all(seen is NO_NOISE for seen in silent.noise)


def test_a_dropped_drafter_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = make("llama")
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    expected, _ = plain(model, prompt(model), **settings)
    plug = attach(model, drafters=[Broken()], nodes=4)
    try:
        with caplog.at_level(logging.WARNING, logger="hf_specplug"):
            output = model.generate(**prompt(model), **settings)
    finally:
        detach(model)
    assert output.tolist() == expected.tolist()
    assert list(plug.stats.dropped) == ["broken"]
    (record,) = [r for r in caplog.records if "'broken' is dropped" in r.getMessage()]
    assert "return self.nothing_of_this_name" in caplog.text
    assert record.exc_info is not None
