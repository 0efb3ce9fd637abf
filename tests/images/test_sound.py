"""Prompts with sound and video: the same output as plain `generate`, and drafted as trees."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.images.talk import inputs, said
from tests.images.tokenizer import BYTES, byte_tokenizer
from tests.images.zoo import TEXT, VOCAB, Built, made, template

RATE = 16_000  # samples a second
NEW = 24
WAYS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": NEW, "do_sample": False},
    {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.8, "top_k": 20, "seed": 3},
)
_ENCODER = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}


def sound(seed: int, seconds: float = 0.5) -> np.ndarray:
    """A chord, and some noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(RATE * seconds)) / RATE
    chord = sum(np.sin(2 * np.pi * tone * time) for tone in generator.uniform(100, 2000, 3))
    return (chord / 3 + 0.1 * generator.standard_normal(len(time))).astype(np.float32)


def _whisper() -> Built:
    tokenizer = byte_tokenizer()
    config = tf.WhisperConfig(
        vocab_size=VOCAB,
        d_model=32,
        **_ENCODER,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=128,
        init_std=0.4,
        decoder_start_token_id=257,
        bos_token_id=257,
        eos_token_id=None,
        pad_token_id=256,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    features = tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    return tf.WhisperForConditionalGeneration(config), tf.WhisperProcessor(features, tokenizer)


def _qwen2_audio() -> Built:
    tokenizer = byte_tokenizer(["<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"])
    config = tf.Qwen2AudioConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        audio_config={
            **_ENCODER,
            "d_model": 16,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "initializer_range": 0.3,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    processor = tf.Qwen2AudioProcessor(
        tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        tokenizer,
        chat_template=template(audio="<|audio_bos|><|AUDIO|><|audio_eos|>"),
    )
    return tf.Qwen2AudioForConditionalGeneration(config), processor


@cache
def heard(build: Any) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = build()
    config = model.eval().generation_config
    config.eos_token_id, config.pad_token_id, config.bos_token_id = None, 256, 257
    return model, processor


def check(model: Any, prompt: dict[str, Any]) -> None:
    """Drafts right and wrong, and the default drafters, leave plain's output as it is."""
    for settings in WAYS:
        expected, state = plain(model, prompt, **settings)
        reference = new_tokens(expected, NEW)
        right = Replay(reference, vocab=BYTES, rank=1)
        mixed = Replay(reference, lambda position: position % 3 == 2, rank=1, vocab=BYTES)
        wrong = Replay(reference, lambda position: True, vocab=BYTES)
        for drafters in (right, mixed, wrong, list(DEFAULT_DRAFTERS)):
            output, after, plug = plugged(model, prompt, drafters, **settings)
            assert output.tolist() == expected.tolist()
            assert torch.equal(after, state)
            assert not plug.stats.fallbacks
            if drafters is right:
                assert plug.stats.forwards < NEW / 2


def test_whisper() -> None:
    model, processor = heard(_whisper)
    given = processor(sound(1), sampling_rate=RATE, return_tensors="pt")
    check(model, dict(given))


@pytest.mark.parametrize("sounds", [1, 2])
def test_qwen2_audio(sounds: int) -> None:
    model, processor = heard(_qwen2_audio)
    turn = said("user", "What is this? What is this?")
    turn["content"][:0] = [{"type": "audio", "audio": sound(seed)} for seed in range(sounds)]
    prompt = inputs(processor, turn)
    assert (prompt["input_ids"] == model.config.audio_token_index).sum() == 12 * sounds
    check(model, prompt)


def _frames(count: int) -> dict[str, Any]:
    """What a Qwen2.5-VL processor makes of `count` frames of 28 x 56 pixels, two in a patch."""
    model, processor = made("qwen2.5-vl")
    config = model.config
    grid = torch.tensor([[count // 2, 2, 4]])
    signs = "<|video_pad|>" * (int(grid.prod()) // 4)
    text = f"<bos><|user|><|vision_start|>{signs}<|vision_end|>What is this? What is<|assistant|>"
    prompt = dict(processor.tokenizer(text, return_tensors="pt"))
    generator = torch.Generator().manual_seed(count)
    return {
        **prompt,
        "mm_token_type_ids": (prompt["input_ids"] == config.video_token_id).int() * 2,
        "pixel_values_videos": torch.randn(int(grid.prod()), 1176, generator=generator),
        "video_grid_thw": grid,
        "second_per_grid_ts": torch.tensor([1.0]),
    }


@pytest.mark.parametrize("frames", [2, 200])
def test_video(frames: int) -> None:
    """The processors of videos need torchvision: pixel values are made by hand in their form."""
    prompt = _frames(frames)
    prompt.pop("token_type_ids", None)
    check(made("qwen2.5-vl")[0], prompt)
