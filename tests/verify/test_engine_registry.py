"""A new engine is one class decorated with `@register_engine`; the plan names a call's engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_specplug import attach, detach
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE, CallPlan
from hf_specplug.verify import registry
from hf_specplug.verify.eager import EagerEngine, EagerFactory
from hf_specplug.verify.registry import make_factories, register_engine
from tests.helpers.runs import chosen, plain
from tests.helpers.zoo import make, prompt

steps: list[int] = []


class CountingEngine(EagerEngine):
    """An eager engine that records the widths of its forward passes."""

    def _verify(self, tokens: Any, depths: Any, seen: Any) -> Any:
        steps.append(len(tokens))
        return super()._verify(tokens, depths, seen)


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    make_factories()
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))
    steps.clear()

    @register_engine
    class Counting(EagerFactory):
        name = "counting"
        priority = 2
        modes = (TREE,)
        widths = (1, 4, 16)

        def suits(self, call: Call, plan: CallPlan) -> bool:
            return plan.mode == TREE

        def make(self, call: Call, plan: CallPlan, packed: Any, layer: int | None) -> EagerEngine:
            return CountingEngine(call, plan, packed, layer)


@pytest.mark.usefixtures("_registered")
def test_a_registered_engine_runs_the_calls_that_it_suits() -> None:
    model = make("llama")
    inputs = prompt(model)
    assert chosen(model, inputs) == CallPlan(TREE, "", "counting", (1, 4, 16))
    expected, _ = plain(model, inputs, max_new_tokens=40, do_sample=False)
    plug = attach(model)
    try:
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    finally:
        detach(model)
    assert torch.equal(output, expected)
    assert len(steps) == plug.stats.forwards
    other = make("bloom")
    assert chosen(other, prompt(other)).engine == "eager"


def test_what_a_plan_says() -> None:
    model = make("llama")
    assert chosen(model, prompt(model)).engine == "eager"
    static = chosen(model, prompt(model), cache_implementation="static")
    assert (static.mode, static.engine, static.widths) == (TREE, "static", (1, 8, 16, 32, 64))
    beams = chosen(model, prompt(model), num_beams=2)
    assert (beams.mode, beams.engine, beams.widths) == (PLAIN, "", None)


def test_a_plan_is_limited_by_the_first_reason() -> None:
    plan = CallPlan(engine="eager").limited(CHAIN, "one").limited(CHAIN, "two")
    assert (plan.mode, plan.reason, plan.engine) == (CHAIN, "one", "eager")
    assert plan.limited(TREE, "no") is plan
    assert plan.limited(PLAIN, "three").reason == "three"
