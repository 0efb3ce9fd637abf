"""Prompts with images: the same output as plain `generate`, and drafted as trees."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.streamers import Collected
from tests.images.talk import inputs, joined, picture, said
from tests.images.tokenizer import BYTES
from tests.images.zoo import FAMILIES, Family, made

NEW = 24
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
SAMPLED = {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.8, "top_k": 20}
QUESTION = "What is this? What is this?"


def replay(reference: list[int], **settings: Any) -> Replay:
    return Replay(reference, vocab=BYTES, **settings)


def check(family: Family, prompt: dict[str, Any], **settings: Any) -> SpecPlug:
    """Right, partly wrong and default drafts leave plain's output as it is; the last plug."""
    model, _ = made(family.name)
    settings = {**GREEDY, **settings}
    expected, state = plain(model, prompt, **settings)
    reference = new_tokens(expected, NEW)
    right = replay(reference, rank=2)
    mixed = replay(reference, wrong=lambda position: position % 3 == 2, rank=1)
    for drafters in (right, mixed, list(DEFAULT_DRAFTERS)):
        output, after, plug = plugged(model, prompt, drafters, **settings)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert not plug.stats.dropped
        assert bool(plug.stats.fallbacks) == (family.mode != "tree"), plug.stats.fallbacks
        if drafters is right and family.mode == "tree":
            assert plug.stats.forwards < NEW / 2
    return plug


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


@torch.no_grad()
def test_one_image(family: Family) -> None:
    model, processor = made(family.name)
    prompt = inputs(processor, said("user", QUESTION, picture(1)))
    check(family, prompt)
    wrong = replay([0] * NEW, wrong=lambda position: True)
    expected, _ = plain(model, prompt, **GREEDY)
    output, _, _ = plugged(model, prompt, wrong, **GREEDY)
    assert output.tolist() == expected.tolist()
    logits = []
    for seed in (1, 2):  # the image is seen
        prompt = inputs(processor, said("user", QUESTION, picture(seed)))
        prompt.pop("labels", None)
        logits.append(model(**prompt).logits[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 0.05 * logits[0].std()


def test_sampled(family: Family) -> None:
    _, processor = made(family.name)
    prompt = inputs(processor, said("user", QUESTION, picture(1)))
    for seed in range(2):
        check(family, prompt, seed=seed, **SAMPLED)


def test_several_images(family: Family) -> None:
    _, processor = made(family.name)
    check(family, inputs(processor, said("user", QUESTION, picture(1), picture(2, 84, 56))))


def test_no_image(family: Family) -> None:
    _, processor = made(family.name)
    if family.needs_image:
        pytest.skip("its processor takes no prompt without an image")
    check(family, inputs(processor, said("user", QUESTION)))


def test_padded(family: Family) -> None:
    _, processor = made(family.name)
    turn = said("user", QUESTION, picture(1))
    longer = inputs(processor, turn)["input_ids"].shape[1] + 7
    padding = {"padding": "max_length", "max_length": longer}
    prompt = inputs(processor, turn, processor_kwargs=padding)
    assert not prompt["attention_mask"][0, :7].any()
    check(family, prompt)


def test_embeddings(family: Family) -> None:
    model, processor = made(family.name)
    if not family.embeddings:
        pytest.skip("transformers refuses inputs_embeds for this class")
    prompt = inputs(processor, said("user", QUESTION, picture(1)))
    states = model.get_input_embeddings()(prompt.pop("input_ids")).detach()
    check(family, {**prompt, "inputs_embeds": states})


def test_static_cache(family: Family) -> None:
    model, processor = made(family.name)
    prompt = inputs(processor, said("user", QUESTION, picture(1)))
    settings = {**GREEDY, "cache_implementation": "static"}
    if not family.static:
        with pytest.raises(AttributeError):  # in plain `generate`, too
            plain(model, prompt, **settings)
        return
    expected, _ = plain(model, prompt, **settings)
    for drafters in (replay(new_tokens(expected, NEW), rank=1), list(DEFAULT_DRAFTERS)):
        output, _, _ = plugged(model, prompt, drafters, **settings)
        assert output.tolist() == expected.tolist()


@pytest.mark.parametrize("shown", [False, True], ids=["text", "image"])
def test_two_turns(family: Family, shown: bool) -> None:
    model, processor = made(family.name)
    if family.needs_image and not shown:
        pytest.skip("its processor takes no turn without an image")
    first = inputs(processor, said("user", QUESTION, picture(1)))
    images = [picture(2)] if shown else []
    turn = inputs(processor, said("user", "And now? And now?", *images))
    kept = {**GREEDY, "return_dict_in_generate": True}

    def talk(drafters: Any) -> tuple[list[int], SpecPlug | None]:
        plug = None if drafters is None else attach(model, drafters=drafters, nodes=12)
        one = model.generate(**first, **kept)
        both = joined(first, one.sequences, turn, processor)
        two = model.generate(**both, **kept, past_key_values=one.past_key_values)
        if plug is not None:
            detach(model)
        assert two.past_key_values.get_seq_length() == two.sequences.shape[1] - 1
        return two.sequences[0].tolist(), plug

    expected, _ = talk(None)
    for drafters in (replay(expected[-NEW:]), list(DEFAULT_DRAFTERS)):
        output, plug = talk(drafters)
        assert output == expected
        assert plug is not None
        assert plug.stats.calls == 2
        assert bool(plug.stats.fallbacks) == (family.mode != "tree")


def _streamed(model: Any, processor: Any, prompt: dict[str, Any]) -> str:
    """What a client reads while another thread generates."""
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    call = Thread(target=model.generate, kwargs={**prompt, **GREEDY, "streamer": streamer})
    call.start()
    text = "".join(streamer)
    call.join()
    return text


def test_streamed(family: Family) -> None:
    model, processor = made(family.name)
    prompt = inputs(processor, said("user", QUESTION, picture(1)))
    expected = _streamed(model, processor, prompt)
    attach(model)
    try:
        assert _streamed(model, processor, prompt) == expected != ""
    finally:
        detach(model)
    heard = Collected()
    output, _, _ = plugged(model, prompt, list(DEFAULT_DRAFTERS), streamer=heard, **GREEDY)
    assert heard.tokens == output[0].tolist()
    assert heard.ended


def test_the_docs_name_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "supported.md").read_text(encoding="utf-8")
    section = page.split("## Images, video and sound")[1].split("## ")[0]
    parts = section.strip().split("\n\n")[0].split("PaliGemma 2")
    trees, chains = (re.sub(r"[^\w,]", "", part.lower()) for part in parts)
    chains = f"paligemma2{chains}"
    for name, family in FAMILIES.items():
        assert re.sub(r"\W", "", name) in (trees if family.mode == "tree" else chains), name
