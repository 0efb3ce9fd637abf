"""Recurrent and hybrid families: drafted as chains, token-identical to plain `generate`."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from transformers import DynamicCache

from hf_specplug.hf.states import KeptStates
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.oracle import Replay
from tests.helpers.runs import chosen, new_tokens, plain, plugged
from tests.hybrid.families import CHAINS, OFF, PLAIN, make, text
from tests.sweep.recipe import VOCAB

GREEDY: dict[str, Any] = {"do_sample": False}
NEW = 24
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 0},
    {"top_k": 10},
    {"top_p": 0.8, "top_k": 0},
    {"min_p": 0.1, "top_k": 0},
    {"typical_p": 0.7, "top_k": 0},
    {"repetition_penalty": 1.3, "top_k": 20, "temperature": 0.9},
    {"no_repeat_ngram_size": 2, "top_k": 0},
    {"bad_words_ids": [[5], [7, 8]], "top_k": 0},
]
"""One for each of the seeds 0 to 7."""


def replay(reference: list[int], every: int = 0, at: int = 0) -> Replay:
    """Right drafts, but wrong at each `every`-th position, of which the first is `at`."""
    return Replay(reference, lambda place: bool(every) and place % every == at, vocab=VOCAB)


def own_noise(model: Any, ids: torch.Tensor, prompt: int, at: int) -> tuple[float, float]:
    """What the model file's rules for one and for several tokens differ by at new token `at`.

    Returns:
        (the largest difference of two logits, by how much the best logit leads by the first rule)
    """

    def logits(width: int) -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        end = prompt + at
        with torch.no_grad():
            found = model(ids[:, :prompt], past_key_values=cache, use_cache=True).logits
            for start in range(prompt, end, width):
                part = ids[:, start : min(start + width, end)]
                found = model(part, past_key_values=cache, use_cache=True).logits
        return found[0, -1].double()

    steps = logits(1)
    best = steps.topk(2).values
    return float((steps - logits(5)).abs().max()), float(best[0] - best[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_greedy(name: str, dtype: torch.dtype) -> None:
    model, inputs = make(name, dtype), text(24)
    expected, state = plain(model, inputs, max_new_tokens=NEW, **GREEDY)
    reference = new_tokens(expected, NEW)
    assert len(set(reference)) > 8
    forwards = []
    for every, at in [(0, 0), (4, 0), (4, 1), (4, 2), (4, 3), (1, 0)]:
        drafter = replay(reference, every, at)
        output, after, plug = plugged(model, inputs, drafter, nodes=9, max_new_tokens=NEW, **GREEDY)
        assert output.tolist() == expected.tolist(), (every, at)
        assert torch.equal(after, state)
        assert dict(plug.stats.engines) == {"chain, recurrent": 1}
        forwards.append(plug.stats.forwards)
    right, *some, wrong = forwards
    assert right <= 4
    assert max(some) < NEW - 4  # accepted tokens that run again save passes all the same
    assert wrong == NEW - 1  # and wrong drafts cost none


@pytest.mark.parametrize("name", CHAINS)
def test_sampled(name: str) -> None:
    model, inputs, count = make(name), text(20), 12
    outputs = set()
    for seed, settings in enumerate(SAMPLING):
        every = {"max_new_tokens": count, "do_sample": True, **settings}
        expected, state = plain(model, inputs, seed, **every)
        drafter = replay(new_tokens(expected, count), 3, 2)
        output, after, plug = plugged(model, inputs, drafter, 7, seed, **every)
        assert output.tolist() == expected.tolist(), settings
        assert torch.equal(after, state)
        assert 0 < plug.stats.forwards < count - 2
        outputs.add(tuple(output[0].tolist()))
    assert len(outputs) > 4


@pytest.mark.parametrize("name", ["granitemoehybrid", "minimax", "qwen3_5_text"])
def test_long_texts(name: str) -> None:
    """In float32, over 400 tokens, with the default drafters and the budget's own sizes."""
    model, inputs, count = make(name, torch.float32), text(24), 420
    expected, state = plain(model, inputs, max_new_tokens=count, **GREEDY)
    reference = new_tokens(expected, count)
    drafters = [replay(reference, 11, 5), *DEFAULT_DRAFTERS]
    output, after, plug = plugged(model, inputs, drafters, "auto", max_new_tokens=count, **GREEDY)
    assert torch.equal(after, state)
    assert not plug.stats.dropped
    assert plug.stats.forwards < count - 1
    if output.tolist() != expected.tolist():
        found = new_tokens(output, count)
        at = next(place for place in range(count) if found[place] != reference[place])
        noise, lead = own_noise(model, expected, 24, at)
        assert lead < noise, f"from new token {at}"


@pytest.mark.parametrize("name", ["falcon_h1", "granitemoehybrid", "kimi_linear", "qwen3_next"])
def test_prompts_of_any_length(name: str) -> None:
    model, count = make(name), 10
    for length in (1, 2, 3, 5, 63, 64, 65, 300):
        inputs = text(length, seed=length)
        expected, _ = plain(model, inputs, max_new_tokens=count, **GREEDY)
        drafter = replay(new_tokens(expected, count), 3, length % 3)
        output, _, plug = plugged(model, inputs, drafter, 8, max_new_tokens=count, **GREEDY)
        assert output.tolist() == expected.tolist(), length
        assert 0 < plug.stats.forwards < count - 1


def test_windows_that_close_inside_a_chain() -> None:
    """DeepSeek V4 compresses every 4 and every 128 tokens to one."""
    model, count = make("deepseek_v4"), 10
    for length in range(121, 129):
        inputs = text(length, seed=length)
        expected, _ = plain(model, inputs, max_new_tokens=count, **GREEDY)
        drafter = replay(new_tokens(expected, count), 6, length % 6)
        output, _, plug = plugged(model, inputs, drafter, 8, max_new_tokens=count, **GREEDY)
        assert output.tolist() == expected.tolist(), length
        assert 0 < plug.stats.forwards < count - 1


def test_wide_chains() -> None:
    """Wider than the chunks of 64 tokens that model files compute at once."""
    for name in ("bamba", "qwen3_next"):
        model, inputs, count = make(name), text(30), 150
        expected, _ = plain(model, inputs, max_new_tokens=count, **GREEDY)
        drafter = replay(new_tokens(expected, count), 90, 70)
        output, _, plug = plugged(model, inputs, drafter, 100, max_new_tokens=count, **GREEDY)
        assert output.tolist() == expected.tolist()
        assert plug.stats.forwards <= 5


@pytest.mark.parametrize("name", ["bamba", "minimax", "qwen3_5_text", "zaya"])
def test_padding_on_the_left(name: str) -> None:
    model, inputs = make(name), text(24, pads=5)
    expected, _ = plain(model, inputs, max_new_tokens=NEW, **GREEDY)
    drafter = replay(new_tokens(expected, NEW), 4, 3)
    output, _, plug = plugged(model, inputs, drafter, 9, max_new_tokens=NEW, **GREEDY)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards < NEW - 4


@pytest.mark.parametrize("name", PLAIN)
def test_what_runs_plainly(name: str) -> None:
    model, inputs = make(name, torch.float32), text(12)
    expected, state = plain(model, inputs, max_new_tokens=8, **GREEDY)
    drafter = replay(new_tokens(expected, 8))
    output, after, plug = plugged(model, inputs, drafter, max_new_tokens=8, **GREEDY)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert plug.stats.forwards == 0
    (reason,) = plug.stats.fallbacks
    assert PLAIN[name] in reason


def test_calls_that_run_plainly() -> None:
    model, inputs = make("qwen3_next"), text(12)
    rows = {key: value.repeat(2, 1) for key, value in inputs.items()}
    assert "LinearAttentionLayer" in (why := _why_plain(model, rows))
    assert "is not drafted yet" in why
    assert "drafts need a cache" in _why_plain(model, inputs, use_cache=False)


def _why_plain(model: Any, inputs: dict[str, Any], **settings: Any) -> str:
    expected, _ = plain(model, inputs, max_new_tokens=6, **GREEDY, **settings)
    output, _, plug = plugged(model, inputs, ["context"], max_new_tokens=6, **GREEDY, **settings)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards == 0
    return "; ".join(plug.stats.fallbacks)


def test_a_static_cache_runs_on_the_same_engine() -> None:
    model, inputs = make("qwen3_next"), text(12)
    settings = {"max_new_tokens": NEW, "cache_implementation": "static", **GREEDY}
    assert chosen(model, inputs, **settings).engine == "recurrent"
    expected, _ = plain(model, inputs, **settings)
    drafter = replay(new_tokens(expected, NEW), 4, 3)
    output, _, plug = plugged(model, inputs, drafter, 9, **settings)
    assert output.tolist() == expected.tolist()
    assert 0 < plug.stats.forwards < NEW - 4


def _crop_only(self: KeptStates) -> None:
    for layer in self._layers:
        layer.put_back()


def _copy_once(self: KeptStates, keep: Any = KeptStates.keep) -> None:
    copies = [copy.clone() for copy in self._copies]
    keep(self)
    self._copies = copies or self._copies


@pytest.mark.parametrize(("method", "broken"), [("put_back", _crop_only), ("keep", _copy_once)])
def test_states_that_are_not_kept_are_noticed(
    method: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: with lost states the text differs, and a trial says so."""
    model, inputs = make("qwen3_5_text"), text(24)
    expected, _ = plain(model, inputs, max_new_tokens=NEW, **GREEDY)
    drafter = replay(new_tokens(expected, NEW), 4, 3)
    assert chosen(model, inputs).mode == "chain"  # shown before the states are lost
    monkeypatch.setattr(KeptStates, method, broken)
    output, _, _ = plugged(model, inputs, drafter, 9, max_new_tokens=NEW, **GREEDY)
    assert output.tolist() != expected.tolist()
    monkeypatch.setattr("hf_specplug.exactness.evidence._results", WeakKeyDictionary())
    if method == "put_back":
        assert OFF in chosen(model, inputs).reason
