"""Batches: token identity with plain `generate` of the same batch, greedy and seeded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.plug import DEFAULT_DRAFTERS
from hf_specplug.verify import lockstep
from hf_specplug.verify.eager import EagerFactory
from hf_specplug.verify.ragged import RaggedEngine
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import FAMILIES, make, prompt

DRAFTERS = list(DEFAULT_DRAFTERS)
LENGTHS = [7, 24, 1, 16, 3, 20, 12, 2, 9, 24, 5, 11, 18, 4, 22, 6, 13]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 32}
TREES = [
    name
    for name, family in FAMILIES.items()
    if family.mode == "tree" and family.kind == "decoder" and name != "qwen2-vl"
]


def always(position: int) -> bool:
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", TREES)
def test_every_tree_family(name: str, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    # with eager attention and padding, transformers itself gives NaN in float64
    padded = dtype == torch.float32 or model.config._attn_implementation != "eager"
    inputs = batch([7, 24, 16] if padded else [24, 24, 24])
    every = [{"do_sample": False, **ENDS}]
    if dtype == torch.float32:
        every += [{"do_sample": False}, {"do_sample": True, "top_k": 0, **ENDS}]
    for kind in every:
        kind["max_new_tokens"] = 28
        expected, state = plain(model, inputs, **kind)
        wrong = {0: lambda position: position % 3 == 2, 2: always}
        drafter = ReplayRows(inputs, expected, wrong, rank=1)
        output, after, plug = plugged(model, inputs, drafter, **kind)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert not plug.stats.dropped
        assert not plug.stats.fallbacks
        assert plug.stats.accepted > 0


@pytest.mark.parametrize("count", [2, 3, 8, 17])
@pytest.mark.parametrize("ends", [{}, ENDS], ids=["equal", "ragged"])
def test_row_counts_and_drafts(count: int, ends: dict[str, Any]) -> None:
    model = make("llama")
    inputs = batch(LENGTHS[:count], seed=count)
    expected, state = plain(model, inputs, **GREEDY, **ends)
    steps = expected.shape[1] - inputs["input_ids"].shape[1] - 1
    cases = {
        "right": ({}, steps // 3),
        "wrong": (dict.fromkeys(range(count), always), steps),
        "some rows": (dict.fromkeys(range(0, count, 2), always), steps),
    }
    for kind, (wrong, most) in cases.items():
        drafter = ReplayRows(inputs, expected, wrong, rank=int(kind != "right"))
        output, after, plug = plugged(model, inputs, drafter, nodes=12, **GREEDY, **ends)
        assert output.tolist() == expected.tolist(), kind
        assert torch.equal(after, state)
        assert plug.stats.forwards <= most, kind
        if kind == "wrong":
            assert plug.stats.forwards == steps  # as many as plain generate
            assert plug.stats.accepted == 0
    output, _, plug = plugged(model, inputs, DRAFTERS, nodes="auto", **GREEDY, **ends)
    assert output.tolist() == expected.tolist()
    assert not plug.stats.dropped


SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7, "top_k": 0},
    "top-p": {"top_p": 0.9, "repetition_penalty": 1.2, "top_k": 50},
    "min-p": {"min_p": 0.05, "no_repeat_ngram_size": 3},
}


@pytest.mark.parametrize(
    ("kind", "count"),
    [("temperature", 2), ("temperature", 8), ("top-p", 3), ("top-p", 17), ("min-p", 5)],
)
def test_sampling(kind: str, count: int) -> None:
    model = make("llama")
    inputs = batch(LENGTHS[:count], seed=count)
    ended = set()
    for seed in range(3 if count < 17 else 2):
        every = {"do_sample": True, "max_new_tokens": 24, "seed": seed, **ENDS, **SAMPLING[kind]}
        expected, state = plain(model, inputs, **every)
        ended |= {row.index(0) if 0 in row else 24 for row in expected[:, 24:].tolist()}
        wrong = {row: lambda position: position % 4 == 3 for row in range(0, count, 2)}
        drafter = ReplayRows(inputs, expected, wrong, rank=seed % 2)
        for drafters in (drafter, DRAFTERS):
            output, after, plug = plugged(model, inputs, drafters, **every)
            assert output.tolist() == expected.tolist()
            assert torch.equal(after, state)
            assert plug.stats.forwards > 0
        assert plug.stats.drafted_by["gumbel"] > 0  # it drafts by the known noise of its row
    assert len(ended) >= min(count, 4)  # rows end at different times


def test_long_and_short_prompts_and_answers() -> None:
    model = make("llama")
    inputs = batch([300, 1, 40, 170])
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 150, **ENDS}
    settings["eos_token_id"] = [5]
    expected, _ = plain(model, inputs, **settings)
    lengths = [row.index(0) if 0 in row else 150 for row in expected[:, 300:].tolist()]
    assert max(lengths) - min(lengths) > 60
    drafter = ReplayRows(inputs, expected, rank=1)
    for drafters in (drafter, DRAFTERS):
        output, _, _ = plugged(model, inputs, drafters, nodes=24, **settings)
        assert output.tolist() == expected.tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sets(st.integers(0, 23)), min_size=2, max_size=4), st.integers(0, 2))
def test_ragged_accept_lengths(wrong: list[set[int]], rank: int) -> None:
    model = make("mistral-window")
    inputs = batch(LENGTHS[: len(wrong)])
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}
    expected, _ = plain(model, inputs, **settings)
    places = {row: each.__contains__ for row, each in enumerate(wrong)}
    drafter = ReplayRows(inputs, expected, places, rank=rank)
    output, _, _ = plugged(model, inputs, drafter, **settings)
    assert output.tolist() == expected.tolist()


@pytest.mark.parametrize("held", [0, 5000, 20_000])
def test_noise_is_drawn_again_for_a_row_far_behind(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = lockstep.LockstepNoise.__init__
    monkeypatch.setattr(
        lockstep.LockstepNoise, "__init__", lambda self, *rest: init(self, *rest, held=held)
    )
    model, inputs = make("llama"), batch([7, 24, 16])
    every = {"do_sample": True, "max_new_tokens": 60, "top_k": 0}
    expected, state = plain(model, inputs, **every)
    drafter = ReplayRows(inputs, expected, {1: always}, siblings=0)  # two rows run ahead
    output, after, plug = plugged(model, inputs, drafter, nodes=30, **every)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert plug.stats.forwards == 59


@pytest.mark.parametrize("published", ["token-recycling", "stand"])
def test_drafting_as_in_papers(published: str) -> None:
    model, inputs = make("llama"), batch([7, 24, 16])
    for sample in (False, True):
        every = {"do_sample": sample, "max_new_tokens": 48, **ENDS}
        expected, state = plain(model, inputs, **every)
        plug = SpecPlug(published=published, nodes=8)
        torch.manual_seed(0)
        output = model.generate(**inputs, custom_generate=plug, **every)
        assert output.tolist() == expected.tolist()
        assert torch.equal(torch.get_rng_state(), state)
        assert plug.stats.drafted > 0


def test_chunked_prefill_and_given_positions() -> None:
    for name in ("llama", "mistral-window"):
        model, inputs = make(name), batch([7, 24, 16])
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        for more in ({"prefill_chunk_size": 5}, {"position_ids": positions + 3}):
            expected, _ = plain(model, inputs, **GREEDY, **more)
            drafter = ReplayRows(inputs, expected, rank=1)
            output, _, plug = plugged(model, inputs, drafter, **GREEDY, **more)
            assert output.tolist() == expected.tolist()
            assert plug.stats.forwards > 0


def test_several_samples_of_each_prompt() -> None:
    model, inputs = make("llama"), batch([7, 24])
    every = {"do_sample": True, "max_new_tokens": 20, "num_return_sequences": 3, **ENDS}
    expected, state = plain(model, inputs, **every)
    output, after, plug = plugged(model, inputs, DRAFTERS, **every)
    assert len(expected) == 6
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert 6 in plug.stats.batches


def test_no_padding_at_all_and_padding_on_the_right() -> None:
    model = make("llama")
    for inputs in (batch([9, 9, 9]), batch([9, 5, 7])):
        expected, _ = plain(model, inputs, **GREEDY)
        output, _, plug = plugged(model, inputs, DRAFTERS, **GREEDY)
        assert output.tolist() == expected.tolist()
        assert plug.stats.forwards > 0
        inputs = {key: value.flip(1) for key, value in inputs.items()}
        expected, _ = plain(model, inputs, **GREEDY)
        output, _, _ = plugged(model, inputs, DRAFTERS, **GREEDY)
        assert output.tolist() == expected.tolist()


def test_eager_attention() -> None:
    torch.manual_seed(0)
    model = FAMILIES["gemma3"].build().eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    model.set_attn_implementation("eager")
    inputs = batch([7, 24, 16])
    expected, _ = plain(model, inputs, **GREEDY)
    drafter = ReplayRows(inputs, expected, rank=2)
    output, _, plug = plugged(model, inputs, drafter, nodes=16, **GREEDY)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards < 30


def test_a_batch_learns_and_a_single_call_goes_on() -> None:
    """Drafters are lent to the rows and given back: calls of any number of rows alternate."""
    model = make("llama")
    plug = attach(model, nodes=12)
    try:
        for inputs in (prompt(model), batch(LENGTHS), prompt(model), batch([5, 8]), batch([3])):
            expected, _ = plain(model, inputs, **GREEDY)
            assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    finally:
        detach(model)
    assert plug.stats.calls == 5
    assert plug.stats.engines == {"tree, eager": 3, "tree, ragged": 2}
    assert plug.stats.tokens == 31 * (1 + 17 + 1 + 2 + 1)
    assert plug.stats.batches[17] > 0


def test_calls_at_the_same_time() -> None:
    """Batches of different sizes and a single row, in three threads of one plug."""
    model = make("llama")
    every = [batch([7, 24, 16]), batch(LENGTHS[:6], seed=2), prompt(model)]
    expected = [plain(model, inputs, **GREEDY)[0].tolist() for inputs in every]
    plug = attach(model, nodes=12)
    try:
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(model.generate, **inputs, **GREEDY) for inputs in [*every, *every]]
            found = [call.result().tolist() for call in calls]
    finally:
        detach(model)
    assert found == [*expected, *expected]
    assert plug.stats.calls == 6
    assert not plug.stats.fallbacks
    sets = [plug._ensemble.acquire().number for _ in range(10)]
    assert sets == list(range(10))  # all have been given back


@pytest.mark.parametrize("name", ["llama", "gemma3", "llama4", "gpt2"])
def test_the_ragged_engine_serves_a_single_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_ragged(self: EagerFactory, *arguments: Any) -> RaggedEngine:
        return RaggedEngine(*arguments)

    monkeypatch.setattr(EagerFactory, "make", make_ragged)
    model, inputs = make(name), prompt(make(name))
    expected, state = plain(model, inputs, **GREEDY)
    drafter = ReplayRows(inputs, expected, {0: lambda position: position % 4 == 3}, rank=1)
    output, after, plug = plugged(model, inputs, drafter, **GREEDY)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert plug.stats.accepted > 0


def test_statistics() -> None:
    model, inputs = make("llama"), batch([7, 24, 16])
    expected, _ = plain(model, inputs, **GREEDY)
    _, _, plug = plugged(model, inputs, ReplayRows(inputs, expected, siblings=0), **GREEDY)
    stats = plug.stats
    assert stats.forwards == 3  # 31 tokens after the prompt's, at 12 per pass
    assert stats.tokens == 3 * 31
    assert stats.accept_length == 31 / 3
    assert stats.batches == {3: 3}
    assert stats.to_dict()["batches"] == {"3": 3}
    assert stats.row_forwards == sum(stats.lengths.values()) == 9
    assert stats.tail == 0 < stats.batch_seconds
    assert "3 forwards over 3.0 rows, at most 3" in str(stats)
    assert plug.trace()
    drafter = ReplayRows(inputs, expected, {1: always}, siblings=0)  # one row is left behind
    _, _, plug = plugged(model, inputs, drafter, **GREEDY)
    assert plug.stats.batches == {3: 3, 1: 28}
    assert 0 < plug.stats.tail_seconds < plug.stats.batch_seconds


@pytest.mark.parametrize("ends", [True, False])
def test_stop_strings(demo_model: Any, tokenizer: Any, ends: bool) -> None:
    texts = ["def add(a, b):\n", "import os\nimport sys\n\n\ndef main", "class Point:"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    inputs = batch([len(row) for row in rows])
    for place, row in enumerate(rows):
        inputs["input_ids"][place, -len(row) :] = torch.tensor(row)
    settings: dict[str, Any] = {
        "max_new_tokens": 48,
        "do_sample": False,
        "tokenizer": tokenizer,
        "stop_strings": ["return", "self", "\n\n"],
        "eos_token_id": tokenizer.eos_token_id if ends else None,
        "pad_token_id": 0,
    }
    before = demo_model.generation_config.eos_token_id
    demo_model.generation_config.eos_token_id = settings["eos_token_id"]
    try:
        expected, _ = plain(demo_model, inputs, **settings)
        output, _, plug = plugged(demo_model, inputs, DRAFTERS, **settings)
    finally:
        demo_model.generation_config.eos_token_id = before
    assert output.tolist() == expected.tolist()
    assert not ends or bool((expected[:, -1] == 0).any())  # a row has ended before another
    assert plug.stats.forwards > 0
    assert not plug.stats.fallbacks
