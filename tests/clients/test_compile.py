"""torch.compile: of the module, of `forward`, in place, with `fullgraph`, with a static cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from hf_specplug import attach, detach
from hf_specplug.plug import SpecPlug
from tests.clients.same import GREEDY, NEW, assert_same, tiny
from tests.helpers.oracle import Replay
from tests.helpers.zoo import prompt

BACKEND = "eager"  # dynamo's part, which is what fails; no code is generated


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Compiled code belongs to functions, which all models of a class share."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def test_a_compiled_module() -> None:
    """`torch.compile(model).generate` is the model's own, so the plug goes to the model."""
    model = tiny()
    compiled: Any = torch.compile(model, backend=BACKEND)
    inputs = prompt(model)
    before = dict(vars(model))
    outcome = assert_same(compiled, lambda **settings: compiled.generate(**inputs, **settings))
    assert outcome.drafted
    assert vars(model) == before
    assert not attach(compiled).stats.calls
    assert compiled.generate(**inputs, max_new_tokens=4, assistant=None).shape[1] == 28
    detach(model)
    assert vars(model) == before


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("how", ["forward", "in place"])
def test_a_compiled_forward(how: str, cache: str) -> None:
    """With `fullgraph`, as transformers' guide has it, torch raises past its recompile limit."""
    model = tiny()
    static = {"cache_implementation": "static"} if cache == "static" else {}
    settings = {**GREEDY, "max_new_tokens": NEW, **static}
    calls = [prompt(model, 24 + seed, seed) for seed in range(3)]
    answers = [model.generate(**inputs, **settings).tolist() for inputs in calls]
    if how == "forward":
        model.forward = torch.compile(model.forward, backend=BACKEND, fullgraph=True)
    else:
        model.compile(backend=BACKEND, fullgraph=True)
    plugs = []
    for inputs, expected, nodes in zip(calls, answers, (2, 12, "auto"), strict=True):
        known = expected[0][-NEW:]
        for drafters in (Replay(known), Replay(known, wrong=lambda position: position % 3 == 1)):
            plugs.append(attach(model, drafters, nodes))
            assert model.generate(**inputs, **settings).tolist() == expected
    assert all(plug.stats.calls and not plug.stats.fallbacks for plug in plugs)
    assert counters["stats"]["unique_graphs"] > 2


@contextlib.contextmanager
def _limit(count: int) -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=count):
        yield


def test_the_limit_is_left_as_it_was() -> None:
    model = tiny()
    attach(model)
    for limit in (3, 100):
        with _limit(limit):
            seen: list[int] = []
            plug = SpecPlug()
            hook = model.register_forward_pre_hook(
                lambda *_, seen=seen: seen.append(torch._dynamo.config.recompile_limit)
            )
            model.generate(**prompt(model), max_new_tokens=3, **GREEDY, assistant=plug)
            hook.remove()
            assert torch._dynamo.config.recompile_limit == limit
            assert set(seen) == {max(limit, 64)}
