"""Everything `generate` offers keeps its meaning with a plug attached."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.errors import OptionError
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import VOCAB, WINDOW, make, prompt

DRAFTERS = ["context", "recycling"]


def check(name: str, inputs: dict[str, Any] | None = None, **settings: Any) -> SpecPlug:
    """Check identity, greedy and seeded, with real and replayed drafts; returns the last plug."""
    model = make(name)
    inputs = prompt(model) if inputs is None else inputs
    settings.setdefault("max_new_tokens", 40)
    for do_sample in (False, True):
        fresh = {key: _fresh(value) for key, value in settings.items()}
        expected, state = plain(model, inputs, do_sample=do_sample, **fresh)
        count = expected.shape[1] - inputs.get("input_ids", torch.empty(1, 0)).shape[1]
        replay = Replay(new_tokens(expected, count), wrong=lambda p: p % 5 == 4, rank=1)
        for drafters in (DRAFTERS, replay):
            fresh = {key: _fresh(value) for key, value in settings.items()}
            output, after, plug = plugged(model, inputs, drafters, do_sample=do_sample, **fresh)
            assert output.tolist() == expected.tolist()
            assert torch.equal(after, state)
    assert plug.stats.calls == 1
    return plug


def _fresh(value: Any) -> Any:
    """Copy stateful processors and caches, so that each run starts with their initial state."""
    return copy.deepcopy(value) if isinstance(value, (list, DynamicCache)) else value


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "llama4", "gpt2", "bloom"])
def test_left_padding(name: str) -> None:
    model = make(name)
    ids = prompt(model, length=30)["input_ids"]
    ids[0, :5] = 0
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    check(name, {"input_ids": ids, "attention_mask": mask})


def test_holes_in_the_attention_mask() -> None:
    ids = prompt(make("llama"), length=30)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, [2, 9, 10, 20]] = 0
    check("llama", {"input_ids": ids, "attention_mask": mask})


def question(tokenizer: Any, text: str = "Write a function that adds two numbers.") -> Any:
    return dict(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    )


@pytest.mark.parametrize("place", ["call", "config", "model"])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_stop_strings(demo_model: Any, tokenizer: Any, place: str, length: int) -> None:
    model, inputs = demo_model, question(tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": 60, "do_sample": False}
    whole, _ = plain(model, inputs, **settings)
    text = tokenizer.decode(new_tokens(whole, 60))
    stop = ["never to be seen", text[len(text) // 2 :][:length]]  # from anywhere within tokens
    settings["tokenizer"] = tokenizer
    if place == "call":
        settings["stop_strings"] = stop
    elif place == "config":
        settings["generation_config"] = GenerationConfig(stop_strings=stop)
    else:
        model.generation_config.stop_strings = stop
    try:
        expected, _ = plain(model, inputs, **settings)
        for drafters in (DRAFTERS, Replay(new_tokens(whole, 60), vocab=4096)):
            output, _, plug = plugged(model, inputs, drafters, **settings)
            assert output.tolist() == expected.tolist()
            assert plug.stats.calls == 1
    finally:
        model.generation_config.stop_strings = None
    assert expected.shape[1] < whole.shape[1]
    if place == "config":
        assert settings["generation_config"].stop_strings == stop


def test_stop_strings_need_a_tokenizer() -> None:
    model = make("llama")
    with pytest.raises(OptionError, match="tokenizer"):
        plugged(model, prompt(model), DRAFTERS, stop_strings=["x"], max_new_tokens=4)


@pytest.mark.parametrize("place", [0, 1, 5, 11])
def test_end_of_text_tokens(place: int) -> None:
    model = make("llama")
    expected, _ = plain(model, prompt(model), max_new_tokens=40, do_sample=False)
    stop = new_tokens(expected, 40)[place]
    check("llama", eos_token_id=[95, stop], pad_token_id=0)
    check("llama", eos_token_id=[95, stop], pad_token_id=0, min_new_tokens=9)


class CountingPenalty(LogitsProcessor):  # type: ignore[misc]
    """Stateful: forbids a token that depends on the number of calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        scores[:, (self.calls * 7 + int(input_ids[0, -1])) % VOCAB] = -float("inf")
        return scores


class StopAtSum(StoppingCriteria):  # type: ignore[misc]
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = int(input_ids[0].sum()) % 23 == 0 and input_ids.shape[1] > 30
        return torch.full((len(input_ids),), done, dtype=torch.bool)


def test_custom_processors_and_criteria() -> None:
    check("llama", logits_processor=LogitsProcessorList([CountingPenalty()]))
    check("llama", stopping_criteria=StoppingCriteriaList([StopAtSum()]))
    check("llama", prefix_allowed_tokens_fn=lambda batch, ids: [3, 4, 5, int(ids[-1]) % 90])
    model, inputs = make("llama"), prompt(make("llama"))
    processor = CountingPenalty()
    plugged(model, inputs, DRAFTERS, max_new_tokens=20, logits_processor=[processor])
    assert processor.calls == 20  # once per emitted token, never for a rejected token


class Recorder(BaseStreamer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.events.append(value.tolist())

    def end(self) -> None:
        self.events.append("end")


def test_streamers(demo_model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = demo_model, question(tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    one, two, three = Recorder(), Recorder(), Recorder()
    plain(model, inputs, streamer=one, **settings)
    plugged(model, inputs, DRAFTERS, streamer=two, **settings)
    assert two.events == one.events
    model.generate(**inputs, custom_generate=SpecPlug(), streamer=three, **settings)
    assert three.events == one.events  # transformers itself does not pass it on

    expected, _ = plain(model, inputs, streamer=TextStreamer(tokenizer), **settings)
    text = capsys.readouterr().out
    plugged(model, inputs, DRAFTERS, streamer=TextStreamer(tokenizer), **settings)
    assert capsys.readouterr().out == text

    stream = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    plug = attach(model)
    thread = threading.Thread(
        target=model.generate, kwargs={**inputs, **settings, "streamer": stream}
    )
    thread.start()
    assert "".join(stream) == tokenizer.decode(new_tokens(expected, 20))
    thread.join()
    detach(model)
    assert plug.stats.tokens == 19
    # models that cannot draft stream too, in plain decoding
    four, five = Recorder(), Recorder()
    mamba = make("mamba2")
    plain(mamba, prompt(mamba), streamer=four, **settings)
    plugged(mamba, prompt(mamba), DRAFTERS, streamer=five, **settings)
    assert five.events == four.events


@pytest.mark.parametrize("name", ["llama", "gemma3", "t5"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_returned_scores_logits_and_cache(name: str, do_sample: bool) -> None:
    model, inputs = make(name), prompt(make(name))
    settings: dict[str, Any] = {
        "max_new_tokens": 30,
        "do_sample": do_sample,
        "repetition_penalty": 1.1,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    expected, _ = plain(model, inputs, **settings)
    drafter = Replay(new_tokens(expected.sequences, 30), rank=1)
    output, _, _ = plugged(model, inputs, drafter, **settings)
    assert type(output) is type(expected)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert len(output.scores) == len(output.logits) == 30
    for ours, theirs in zip(
        output.scores + output.logits, expected.scores + expected.logits, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert output.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    caches = (output.past_key_values, expected.past_key_values)
    ours, theirs = (getattr(cache, "self_attention_cache", cache) for cache in caches)
    for one, two in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(one.keys, two.keys, rtol=1e-3, atol=1e-3)
        assert not getattr(one, "record_past", False)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "lfm2"])
@pytest.mark.parametrize("configured", [True, False])
def test_a_cache_continued_over_two_turns(name: str, configured: bool) -> None:
    if name == "lfm2" and not configured:
        pytest.skip("LFM2 needs a cache made for its layers")
    model, inputs = make(name), prompt(make(name))
    extra = torch.tensor([[11, 12, 13]])
    results = []
    for drafters in (None, DRAFTERS):
        cache = DynamicCache(config=model.config) if configured else DynamicCache()
        settings = {"max_new_tokens": 25, "do_sample": False, "past_key_values": cache}
        texts = []
        ids = inputs["input_ids"]
        for _ in range(2):
            if drafters is None:
                ids, _ = plain(model, {"input_ids": ids}, **settings)
            else:
                ids, _, plug = plugged(model, {"input_ids": ids}, drafters, **settings)
                assert plug.stats.calls == 1
            texts.append(ids.tolist())
            ids = torch.cat([ids, extra], dim=1)
        results.append((texts, cache.get_seq_length()))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3"])
def test_chunked_prefill(name: str) -> None:
    check(name, prefill_chunk_size=7)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "falcon-alibi"])
def test_short_prompts_and_outputs(name: str) -> None:
    model = make(name)
    for length in (1, 2):
        check(name, prompt(model, length=length), max_new_tokens=20)
    for count in (1, 2, 3):
        check(name, max_new_tokens=count)
    check(name, prompt(model, length=1), max_new_tokens=1)


def test_prompt_embeddings() -> None:
    model = make("llama")
    embeddings = model.get_input_embeddings()(prompt(model)["input_ids"]).detach()
    check("llama", {"inputs_embeds": embeddings})


@pytest.mark.parametrize("wanted", ["output_attentions", "output_hidden_states"])
def test_attentions_and_hidden_states_run_plainly(wanted: str) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(make("llama"))
    model.set_attn_implementation("eager")
    settings = {wanted: True, "return_dict_in_generate": True, "max_new_tokens": 9}
    expected, _ = plain(model, prompt(model), do_sample=False, **settings)
    output, _, plug = plugged(model, prompt(model), DRAFTERS, do_sample=False, **settings)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert len(output[wanted.removeprefix("output_")]) == 9
    assert wanted in next(iter(plug.stats.fallbacks))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_beams": 3}, "beam_search"),
        ({"num_beams": 2, "do_sample": True}, "beam_sample"),
        ({"use_cache": False}, "cache"),
        ({"prompt_lookup_num_tokens": 3}, "assisted generation"),
    ],
)
def test_what_cannot_be_drafted_runs_plainly(settings: dict[str, Any], reason: str) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    expected, state = plain(model, inputs, max_new_tokens=12, **settings)
    output, after, plug = plugged(model, inputs, DRAFTERS, max_new_tokens=12, **settings)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert plug.stats.forwards == 0
    assert reason in next(iter(plug.stats.fallbacks))
    if "prompt_lookup" in next(iter(settings)):
        return
    direct = SpecPlug(drafters=DRAFTERS)
    torch.manual_seed(0)
    output = model.generate(**inputs, custom_generate=direct, max_new_tokens=12, **settings)
    assert output.tolist() == expected.tolist()
    assert reason in next(iter(direct.stats.fallbacks))


def test_classifier_free_guidance_and_watermark() -> None:
    check("llama", guidance_scale=1.5)
    check("llama", watermarking_config={"bias": 2.0, "greenlist_ratio": 0.5})


def test_text_of_the_encoder_is_copied_from() -> None:
    model = make("t5")
    inputs = prompt(model)
    encoder = inputs["input_ids"][0].tolist()
    forced = LogitsProcessorList([Speak(encoder)])
    output, _, plug = plugged(
        model, inputs, ["context"], max_new_tokens=20, do_sample=False, logits_processor=forced
    )
    assert output[0, 1:].tolist() == encoder[:20]
    assert plug.stats.forwards < 12


class Speak(LogitsProcessor):  # type: ignore[misc]
    """Makes the model generate a given text."""

    def __init__(self, text: list[int]) -> None:
        self.text = text

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.text[input_ids.shape[1] - 1]] += 1e6
        return scores


def test_generation_stops_at_the_token_not_at_the_block() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, max_new_tokens=40, do_sample=False)
    reference = new_tokens(expected, 40)
    for count in range(1, 25):
        drafter = Replay(reference, siblings=0)
        output, _, plug = plugged(
            model, inputs, drafter, nodes=40, max_new_tokens=count, do_sample=False
        )
        assert new_tokens(output, count) == reference[:count]
        assert plug.stats.forwards <= 1
        assert plug.stats.tokens == count - 1


def test_windows_matter_in_these_tests() -> None:
    model = make("mistral-window")
    assert prompt(model)["input_ids"].shape[1] > WINDOW == model.config.sliding_window


def test_no_draft_asks_for_positions_that_the_model_does_not_have() -> None:
    model = make("bart")
    settings = {"do_sample": False, "max_length": model.config.max_position_embeddings}
    expected, _ = plain(model, prompt(model), **settings)
    output, _, plug = plugged(model, prompt(model), ["context", "recycling"], nodes=24, **settings)
    assert output.tolist() == expected.tolist()
    assert plug.stats.accepted > 0
