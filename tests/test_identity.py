"""Losslessness: token identity with plain `generate`, greedy and seeded, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import FAMILIES, make, prompt

DRAFTERS = list(DEFAULT_DRAFTERS)
CASES = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}")
    for name, family in FAMILIES.items()
    for dtype in family.dtypes
]
SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7, "top_k": 0},
    "top-k": {"top_k": 10},
    "top-p": {"top_p": 0.8, "top_k": 0},
    "min-p": {"min_p": 0.1, "top_k": 0},
    "typical": {"typical_p": 0.7, "top_k": 0},
    "repetition-penalty": {"repetition_penalty": 1.3, "top_k": 20, "temperature": 0.9},
    "no-repeat-ngram": {"no_repeat_ngram_size": 2, "top_k": 0},
    "bad-words": {"bad_words_ids": [[5], [7, 8]], "top_k": 0},
}


def drafts(reference: list[int]) -> dict[str, Replay]:
    """All right, right behind wrong siblings, wrong at some positions, all wrong."""
    return {
        "right": Replay(reference),
        "rank-2": Replay(reference, rank=2),
        "some-wrong": Replay(reference, wrong=lambda position: position % 3 == 2, rank=1),
        "wrong": Replay(reference, wrong=lambda position: True),
    }


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_greedy(name: str, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    inputs = prompt(model)
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    expected, state = plain(model, inputs, **settings)
    reference = new_tokens(expected, 40)
    forwards = {}
    for kind, drafter in drafts(reference).items():
        output, after, plug = plugged(model, inputs, drafter, **settings)
        assert output.tolist() == expected.tolist(), kind
        assert torch.equal(after, state)
        assert not plug.stats.dropped
        forwards[kind] = plug.stats.forwards
    if FAMILIES[name].mode == "plain":
        assert forwards == dict.fromkeys(forwards, 0)
        assert plug.stats.fallbacks
    else:  # right drafts save forward passes, wrong ones cost none: one each after the prompt's
        assert forwards["right"] <= 8
        if FAMILIES[name].mode == "tree":
            assert forwards["some-wrong"] == 14
        else:  # a chain cannot hold both; the mixer learns which of them to take
            assert forwards["some-wrong"] <= 39
        assert forwards["wrong"] == 39
    if FAMILIES[name].mode == "tree":
        assert not plug.stats.fallbacks
        assert forwards["rank-2"] < 30  # siblings are checked together
    output, _, plug = plugged(model, inputs, DRAFTERS, nodes=16, **settings)
    assert output.tolist() == expected.tolist()
    assert not plug.stats.dropped


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_sampling(name: str, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    inputs = prompt(model)
    outputs = set()
    for kind, settings in SAMPLING.items():
        for seed in range(8):
            every = {"max_new_tokens": 14, "do_sample": True, "seed": seed, **settings}
            expected, state = plain(model, inputs, **every)
            reference = new_tokens(expected, 14)
            outputs.add(tuple(reference))
            drafter = Replay(reference, wrong=lambda position: position % 4 == 3, rank=seed % 3)
            output, after, _ = plugged(model, inputs, drafter, **every)
            assert output.tolist() == expected.tolist(), (kind, seed)
            assert torch.equal(after, state), (kind, seed)
    assert len(outputs) > 10  # the check is not vacuous


@pytest.mark.parametrize("kind", SAMPLING)
def test_sampling_with_the_real_drafters(kind: str) -> None:
    model = make("llama", torch.float32)
    inputs = prompt(model)
    for seed in range(8):
        every = {"max_new_tokens": 40, "do_sample": True, "seed": seed, **SAMPLING[kind]}
        expected, state = plain(model, inputs, **every)
        output, after, plug = plugged(model, inputs, DRAFTERS, **every)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert plug.stats.drafted > 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window", "gemma3", "llama4", "t5"])
@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8, 33, 64, "auto"])
def test_every_size(name: str, nodes: int | str) -> None:
    model = make(name)
    inputs = prompt(model)
    settings: dict[str, Any] = {"max_new_tokens": 50, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    for drafters in (DRAFTERS, ["context"], ["recycling"]):
        output, _, _ = plugged(model, inputs, drafters, nodes=nodes, **settings)
        assert output.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt-oss", "mistral-window"])
def test_eager_attention(name: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name].build().eval()
    model.generation_config.eos_token_id = None
    model.set_attn_implementation("eager")
    inputs = prompt(model)
    expected, _ = plain(model, inputs, max_new_tokens=40, do_sample=False)
    drafter = Replay(new_tokens(expected, 40), rank=2)
    output, _, plug = plugged(model, inputs, drafter, max_new_tokens=40, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards < 30


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gemma3", "whisper"])
@pytest.mark.parametrize("nodes", [6, 24])
def test_static_cache(name: str, nodes: int) -> None:
    model = make(name)
    inputs = prompt(model)
    settings = {"max_new_tokens": 40, "do_sample": False, "cache_implementation": "static"}
    expected, _ = plain(model, inputs, **settings)
    drafter = Replay(new_tokens(expected, 40), rank=1)
    output, _, plug = plugged(model, inputs, drafter, nodes=nodes, **settings)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards < 40


def test_long_text_grows_every_buffer() -> None:
    model = make("llama")
    inputs = prompt(model, length=200)
    model.config.max_position_embeddings = 2048
    settings: dict[str, Any] = {"max_new_tokens": 700, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    output, _, plug = plugged(model, inputs, DRAFTERS, nodes=16, **settings)
    assert output.tolist() == expected.tolist()
    assert plug.stats.accept_length > 1.5
