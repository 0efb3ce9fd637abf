"""Criteria and streamers that see all rows of a step: called as plain `generate` calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.batch.test_encoders import START, texts
from tests.batch.test_returned import RETURNED, same, same_cache
from tests.helpers.criteria import RULES, Asked, Recorded, Stops, after_a_neighbour
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


def always(position: int) -> bool:
    return True


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
def test_criteria_and_streamers(kind: str, rule: str) -> None:
    model = make("llama")
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
@pytest.mark.parametrize("kind", ["ends", "sampled"])
def test_fixed_slots(kind: str, rule: str) -> None:
    """Rows that left the forward pass come back: their slots have not been overwritten."""
    settings = {**KINDS[kind], "cache_implementation": "static"}
    plugs = compare(make("llama"), batch(LENGTHS[:5]), RULES[rule], **settings)
    assert plugs["default"].stats.engines == {"tree, static_ragged": 1}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["ends", "sampled ends"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoders(name: str, kind: str, rule: str) -> None:
    compare(make(name), texts(3), RULES[rule], start=START, **KINDS[kind])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["llama", "mistral-window", "bloom"])
def test_scores_logits_and_cache(name: str, rule: str) -> None:
    compare(make(name), batch(LENGTHS[:3]), RULES[rule], **{**RETURNED, **KINDS["sampled"]})


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_scores_logits_and_cache_of_encoders(name: str) -> None:
    model, inputs = make(name), texts(3)
    every = {**RETURNED, **KINDS["sampled"]}
    outputs = []
    for run in (plain, lambda *given, **more: plugged(*given, DRAFTERS, **more)[:2]):
        output, _ = run(model, inputs, stopping_criteria=[Asked(after_a_neighbour)], **every)
        outputs.append(output)
    expected, found = outputs
    assert found.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(found.scores, expected.scores, atol=2e-4, rtol=2e-4)
    for part in ("self_attention_cache", "cross_attention_cache"):
        own, other = (getattr(each.past_key_values, part) for each in outputs)
        assert same_cache(own, other)


@pytest.mark.parametrize("count", [8, 17])
def test_many_rows_in_float64(count: int) -> None:
    model, inputs = make("llama", torch.float64), batch([*range(1, count + 1)], seed=count)
    for kind in ("ends", "sampled"):
        compare(model, inputs, RULES["after a neighbour"], **KINDS[kind])
