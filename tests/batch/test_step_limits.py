"""Criteria and streamers of a batch: errors, time, what runs plainly; tests that notice errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.batch.steps import Steps
from hf_specplug.plug import DEFAULT_DRAFTERS
from hf_specplug.verify.lockstep import LockstepNoise
from hf_specplug.verify.ragged import RaggedEngine
from hf_specplug.verify.row_acceptance import RowVerifier
from tests.batch.test_returned import RETURNED, same
from tests.batch.test_steps import GREEDY, KINDS, LENGTHS, compare
from tests.helpers.criteria import RULES, Asked, Recorded, never, one_row
from tests.helpers.rows import ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make

DRAFTERS = list(DEFAULT_DRAFTERS)


@pytest.mark.parametrize("returned", [{}, RETURNED], ids=["tokens", "scores"])
@pytest.mark.parametrize("seconds", [1e-9, 3600.0])
@pytest.mark.parametrize("kind", KINDS)
def test_max_time(kind: str, seconds: float, returned: dict[str, Any]) -> None:
    model, inputs = make("llama"), batch(LENGTHS[:3])
    every = {**returned, **KINDS[kind], "max_time": seconds}
    expected, state = plain(model, inputs, **every)
    output, after, plug = plugged(model, inputs, DRAFTERS, **every)
    assert same(output, expected) if returned else output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert bool(plug.stats.forwards) == (seconds > 1)
    assert not plug.stats.fallbacks


def test_scores_of_padding_run_plainly() -> None:
    model, inputs = make("llama"), batch(LENGTHS[:3])
    every = {**RETURNED, **KINDS["ends"]}
    criteria = [Asked(one_row), Asked(one_row)]
    expected, _ = plain(model, inputs, stopping_criteria=criteria[:1], **every)
    output, _, plug = plugged(model, inputs, DRAFTERS, stopping_criteria=criteria[1:], **every)
    assert same(output, expected)
    assert criteria[1].was_asked_as(criteria[0])
    assert "Asked gets the scores of padding" in next(iter(plug.stats.fallbacks))


class Broken(Recorded):
    """Fails at the ninth call; as a criterion, at the eighth."""

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        if len(self.got) == 9:
            raise KeyError("the stream has been closed")

    def ends(self, ids: torch.Tensor, count: int) -> Any:
        if count == 8:
            raise KeyError("no answer")
        return never(ids, count)


@pytest.mark.parametrize("part", ["criterion", "streamer"])
@pytest.mark.parametrize("kind", ["ends", "sampled"])
def test_errors_reach_the_caller(kind: str, part: str) -> None:
    model, inputs = make("llama"), batch(LENGTHS[:4])
    said, state = plain(model, inputs, **KINDS[kind])
    left = []
    plug = attach(model, drafters=ReplayRows(inputs, said), nodes=12)
    try:
        for run in (type(model).generate, lambda _, **given: model.generate(**given)):
            broken = Broken()
            more: dict[str, Any] = {"streamer": broken}
            if part == "criterion":
                more = {"streamer": Recorded(), "stopping_criteria": [Asked(broken.ends)]}
            torch.manual_seed(0)
            with pytest.raises(KeyError):
                run(model, **inputs, **KINDS[kind], **more)
            left.append((torch.get_rng_state().tolist(), more["streamer"].got))
        assert left[0] == left[1]  # the generator, and what was streamed
        torch.manual_seed(0)
        assert model.generate(**inputs, **KINDS[kind]).tolist() == said.tolist()
        assert torch.equal(torch.get_rng_state(), state)
        assert plug._ensemble.acquire().number == 0  # all drafters have been given back
    finally:
        detach(model)


def test_a_streamer_of_a_plug_that_is_not_attached() -> None:
    model, inputs = make("llama"), batch(LENGTHS[:3])
    streamers, plug = [Recorded(), Recorded()], SpecPlug()
    plain(model, inputs, streamer=streamers[0], **GREEDY)
    model.generate(**inputs, custom_generate=plug, streamer=streamers[1], **GREEDY)
    assert streamers[0].got == streamers[1].got
    assert plug.stats.forwards > 0


def test_recorded_answers_end_where_rows_end() -> None:
    model, inputs = make("llama"), batch(LENGTHS[:3])
    said, _ = plain(model, inputs, **GREEDY)
    found: list[list[int]] = []
    plug = attach(model, drafters=ReplayRows(inputs, said))
    plug._runner.growing = SimpleNamespace(add=lambda tokens: found.append(tokens.tolist()))
    try:
        stops = [Asked(one_row), EosTokenCriteria(4)]
        output = model.generate(**inputs, **GREEDY, pad_token_id=0, stopping_criteria=stops)
    finally:
        detach(model)
    answers = output[:, 24:].tolist()
    answers[1] = answers[1][:4]
    assert found == [row[: row.index(4) + 1] if 4 in row else row for row in answers]


def test_calls_without_such_criteria_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Steps, "follow")
    model, inputs = make("llama"), batch(LENGTHS[:3])
    for kind in KINDS.values():
        assert plugged(model, inputs, DRAFTERS, **kind)[2].stats.forwards > 0


end, advance, resume = RowVerifier.end, Steps._advance, LockstepNoise.resume


class Mutations:
    """Errors in what belongs to a step; each is a replacement for a method."""

    @staticmethod
    def without_cutting(self: RowVerifier, count: int) -> None:
        end(self, len(self.said))

    @staticmethod
    def one_token_more(self: RowVerifier, count: int) -> None:
        end(self, count + 1)

    @staticmethod
    def keeping_all(self: RaggedEngine, lengths: Any) -> None:
        pass

    @staticmethod
    def twice(self: Steps) -> bool:
        self._criteria(self.ids, self._scores)
        return advance(self)

    @staticmethod
    def every_other_one(self: Steps) -> bool:
        criteria = self._criteria
        if self._count % 2:
            self._criteria = StoppingCriteriaList([MaxLengthCriteria(criteria.max_length)])
        try:
            return advance(self)
        finally:
            self._criteria = criteria

    @staticmethod
    def last_row_first(self: Steps) -> bool:
        self._rows = [*self._rows[1:], self._rows[0]]
        try:
            return advance(self)
        finally:
            self._rows = [self._rows[-1], *self._rows[:-1]]

    @staticmethod
    def ahead(self: LockstepNoise, step: int) -> None:
        resume(self, max(step, self._picked))


@pytest.mark.parametrize(
    ("kind", "method", "mutation"),
    [
        (RowVerifier, "end", Mutations.without_cutting),
        (RowVerifier, "end", Mutations.one_token_more),
        (RaggedEngine, "cut", Mutations.keeping_all),
        (Steps, "_advance", Mutations.twice),
        (Steps, "_advance", Mutations.every_other_one),
        (Steps, "_advance", Mutations.last_row_first),
        (LockstepNoise, "resume", Mutations.ahead),
    ],
)
def test_mutations_are_noticed(
    kind: Any, method: str, mutation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make("llama"), batch(LENGTHS[:3])
    monkeypatch.setattr(kind, method, mutation)
    with pytest.raises(AssertionError):
        compare(model, inputs, RULES["all at once"], **{**RETURNED, **KINDS["sampled"]})
