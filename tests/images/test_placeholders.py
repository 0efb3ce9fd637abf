"""What stands for images and sound: in prompts a great deal of it, in drafts none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32
from hf_specplug.hf.suppressed import placeholders
from hf_specplug.plug import DEFAULT_DRAFTERS
from hf_specplug.tree import DraftTree
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.images.talk import inputs, picture, said
from tests.images.tokenizer import BYTES
from tests.images.zoo import FAMILIES, made

GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}


class Signs(Drafter):
    """Proposes what it must not, and what follows it."""

    name = "signs"

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.priors = np.array([0.9], np.float32)

    def begin(self, context: Context) -> None:
        assert not np.isin(context.tokens, self.tokens).any()

    def expand(self, frontier: Frontier) -> Int32:
        rows = [(node, token, 0) for node in frontier.nodes for token in (*self.tokens, 65)]
        return np.array(rows, np.int32)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tf.Qwen2_5_VLConfig(), {151655, 151656}),
        (tf.Gemma3Config(), {262144}),
        (tf.Gemma4Config(), {258880, 258881, 258884}),
        (tf.LlavaConfig(), {32000}),
        (tf.PaliGemmaConfig(), {256000}),
        (tf.MllamaConfig(), {128256}),
        (tf.Qwen2AudioConfig(), {151646}),
        (tf.Phi4MultimodalConfig(), {200010, 200011}),  # in the configs of its parts
        (tf.LlamaConfig(), set()),
        (tf.WhisperConfig(), set()),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_they_are_found(config: Any, expected: set[int]) -> None:
    assert placeholders(config) == expected


def test_what_begins_and_ends_an_image_may_be_said() -> None:
    config = tf.Qwen2_5_VLConfig()
    found = placeholders(config)
    assert not found & {config.vision_start_token_id, config.vision_end_token_id}


@pytest.mark.parametrize("published", [None, "token-recycling", "stand", "rasd"])
def test_no_tree_holds_one(published: str | None) -> None:
    """The model's own likeliest tokens are made of them here; no forward pass sees one drafted."""
    model, processor = made("qwen2.5-vl")
    barred = sorted(placeholders(model.config))
    prompt = inputs(processor, said("user", "aaaa", picture(1, 84, 84), picture(2, 84, 84)))
    head = model.lm_head.weight.data
    before = head.clone()
    fed: list[int] = []

    def seen(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["past_key_values"] is not None and kwargs["past_key_values"].get_seq_length():
            fed.extend(kwargs["input_ids"][0, 1:].tolist())

    watch = model.register_forward_pre_hook(seen, with_kwargs=True)
    drafters: list[Any] = [*DEFAULT_DRAFTERS, Signs(barred)]
    plug = SpecPlug(drafters=drafters, nodes=32, published=published)
    try:
        head[barred] = head[:BYTES].abs().max(dim=0).values * 0.7  # often the runner-up, or more
        expected, _ = plain(model, prompt, **GREEDY)
        fed.clear()
        for _ in range(2):  # the second time with all that the first has taught
            output = model.generate(**prompt, **GREEDY, custom_generate=plug)
            assert output.tolist() == expected.tolist()
    finally:
        watch.remove()
        head.copy_(before)
    recycling, stand = plug.drafters[1:3]  # a paper's search lets only its own drafters learn
    named = np.concatenate([recycling.ids.ravel(), stand.table.ids.ravel()])
    assert np.isin(named, barred).any(), "the model never found one likely: nothing is shown"
    trees = [step.tree for step in plug._runner.history.steps]
    assert sum(len(tree) for tree in trees) > 20
    assert not any(np.isin(tree.tokens, barred).any() for tree in trees)
    assert fed
    assert not set(fed) & set(barred)
    assert not plug.stats.dropped


def test_a_tree_without_some_tokens() -> None:
    tree = DraftTree(
        np.array([7, 8, 9, 8, 5], np.int32),
        np.array([-1, 0, 1, -1, 3], np.int32),
        np.full(5, 0.5, np.float32),
        np.ones(5, np.uint16),
    )
    left = tree.without([8])
    assert (left.tokens.tolist(), left.parents.tolist()) == ([7], [-1])
    assert tree.without([1]).tokens.tolist() == tree.tokens.tolist()


def test_the_text_after_the_last_placeholder() -> None:
    assert Context([5, 6], 100).unbroken == 2
    assert Context([5, -1], 100).unbroken == 0
    assert Context([5, -1, 7, 7, 7], 100).unbroken == 3


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_one_row_of_the_prompt(name: str) -> None:
    """As in plain `generate`, logits are computed for the last token only."""
    model, processor = made(name)
    prompt = inputs(processor, said("user", "x", picture(1)))
    prompt.pop("labels", None)
    every = model(**prompt).logits[0]
    computed: list[torch.Tensor] = []

    def keep(_: Any, args: Any, output: Any) -> None:
        computed.append(output.logits[0].clone())

    watch = model.register_forward_hook(keep)
    try:
        attach(model)
        model.generate(**prompt, **GREEDY)  # tries first what such a call can do
        computed.clear()
        model.generate(**prompt, **GREEDY)
    finally:
        detach(model)
        watch.remove()
    logits = next(rows for rows in computed if torch.equal(rows[-1].argmax(), every[-1].argmax()))
    assert len(logits) == 1
    torch.testing.assert_close(logits, every[-1:], atol=1e-4, rtol=1e-4)


def test_a_model_that_says_one() -> None:
    """What the model itself says is kept and fed, as in plain `generate`."""
    model, processor = made("llava")
    prompt = inputs(processor, said("user", "abc abc", picture(1)))
    sign = model.config.image_token_index
    bias = tf.SequenceBiasLogitsProcessor([[[sign], 6.0]])
    settings = {**GREEDY, "logits_processor": [bias]}
    expected, _ = plain(model, prompt, **settings)
    reference = new_tokens(expected, 24)
    assert sign in reference
    for drafters in (Replay(reference, vocab=BYTES), list(DEFAULT_DRAFTERS)):
        output, _, _ = plugged(model, prompt, drafters, **settings)
        assert output.tolist() == expected.tolist()
