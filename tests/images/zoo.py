"""Tiny models that read images, sound or video: real classes, real processors, no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.images.tokenizer import BYTES, byte_tokenizer

VOCAB = BYTES + 32  # with room for special tokens
TEMPLATE = (
    "{{ bos }}{% for message in messages %}<|{{ message.role }}|>{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}{{ signs[part.type] }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # the usual 0.02 gives nearly uniform logits in this size
    "tie_word_embeddings": False,
    "bos_token_id": 257,
    "eos_token_id": None,
    "pad_token_id": 256,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.3,
}
Built = tuple[PreTrainedModel, Any]


def _without_videos(kind: type[Any], **parts: Any) -> Any:
    """A processor that takes no videos: the video processors of transformers need torchvision."""

    class Processor(kind):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            if name == "video_processor":
                return None
            return super().check_argument_for_proper_class(name, argument)

    return Processor(video_processor=None, **parts)


@dataclass(frozen=True)
class Family:
    """A model with its processor.

    Attributes:
        mode: how it is expected to be run: "tree" or "chain".
        needs_image: whether its processor takes no prompt without an image.
        embeddings: whether transformers takes `inputs_embeds` for it.
        static: whether plain generation takes a static cache.
    """

    name: str
    build: Callable[[], Built]
    mode: str = "tree"
    needs_image: bool = False
    embeddings: bool = True
    static: bool = True


def template(**signs: str) -> str:
    """The chat template, with what stands for an image."""
    return f"{{% set signs = {signs!r} %}}{{% set bos = '<bos>' %}}{TEMPLATE}"


def _qwen2_5_vl() -> Built:
    tokenizer = byte_tokenizer(
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    ids = tokenizer.convert_tokens_to_ids
    config = tf.Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "initializer_range": 0.3,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    processor = _without_videos(
        tf.Qwen2_5_VLProcessor,
        image_processor=tf.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84),
        tokenizer=tokenizer,
        chat_template=template(image="<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> Built:
    tokenizer = byte_tokenizer(
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    ids = tokenizer.convert_tokens_to_ids
    config = tf.Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.3,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    processor = _without_videos(
        tf.Qwen3VLProcessor,
        image_processor=tf.Qwen2VLImageProcessorPil(
            patch_size=16, min_pixels=32 * 32, max_pixels=96 * 96
        ),
        tokenizer=tokenizer,
        chat_template=template(image="<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return tf.Qwen3VLForConditionalGeneration(config), processor


def _gemma3() -> Built:
    tokenizer = byte_tokenizer(
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    config = tf.Gemma3Config(
        text_config={
            **TEXT,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=VISION,
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        chat_template=template(image="<start_of_image>"),
        image_seq_length=4,
    )
    model = tf.Gemma3ForConditionalGeneration(config)
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_()  # made as zeros
    return model, processor


def _gemma4(**changes: Any) -> Callable[[], Built]:
    def build() -> Built:
        tokenizer = byte_tokenizer(
            image_token="<|image|>",
            boi_token="<|image>",
            eoi_token="<image|>",
            audio_token="<|audio|>",
            boa_token="<|audio>",
            eoa_token="<audio|>",
        )
        processor = _without_videos(
            tf.Gemma4Processor,
            feature_extractor=tf.Gemma4AudioFeatureExtractor(),
            image_processor=tf.Gemma4ImageProcessorPil(
                max_soft_tokens=70, patch_size=4, pooling_kernel_size=2
            ),
            tokenizer=tokenizer,
            chat_template=template(image="<|image|>"),
        )
        config = tf.Gemma4Config(
            text_config={
                **TEXT,
                "head_dim": 8,
                "global_head_dim": 16,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
                "use_bidirectional_attention": "vision",
                "hidden_size_per_layer_input": 0,
                **changes,
            },
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "position_embedding_size": 64,
                "initializer_range": 0.3,
            },
            audio_config=None,
            boi_token_id=tokenizer.boi_token_id,
            eoi_token_id=tokenizer.eoi_token_id,
            image_token_id=tokenizer.image_token_id,
            video_token_id=processor.video_token_id,
            boa_token_id=tokenizer.boa_token_id,
            eoa_token_index=tokenizer.eoa_token_id,
            audio_token_id=tokenizer.audio_token_id,
            tie_word_embeddings=False,
        )
        return tf.Gemma4ForConditionalGeneration(config), processor

    return build


def _llava() -> Built:
    tokenizer = byte_tokenizer(["<image>"])
    config = tf.LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(image="<image>"),
    )
    return tf.LlavaForConditionalGeneration(config), processor


def _internvl() -> Built:
    tokenizer = byte_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = tf.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={
            **VISION,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            "layer_scale_init_value": 1.0,
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = _without_videos(
        tf.InternVLProcessor,
        image_processor=tf.GotOcr2ImageProcessorPil(
            size={"height": 56, "width": 56}, max_patches=2
        ),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template(image="<IMG_CONTEXT>"),
    )
    return tf.InternVLForConditionalGeneration(config), processor


def _smolvlm() -> Built:
    """With the processor of Idefics 3, its elder sister: SmolVLM's own needs num2words."""
    tokenizer = byte_tokenizer(
        ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    )
    config = tf.SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "image_size": 56},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=256,
    )
    images = tf.SmolVLMImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}, do_image_splitting=False
    )
    processor = tf.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=template(image="<image>")
    )
    return tf.SmolVLMForConditionalGeneration(config), processor


def _paligemma(text: str, **changes: Any) -> Callable[[], Built]:
    def build() -> Built:
        tokenizer = byte_tokenizer(image_token="<image>")
        config = tf.PaliGemmaConfig(
            text_config={**TEXT, "model_type": text, "head_dim": 8, **changes},
            vision_config={**VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
            image_token_index=tokenizer.image_token_id,
            projection_dim=32,
            hidden_size=32,
            tie_word_embeddings=False,
        )
        images = tf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
        images.image_seq_length = 4
        processor = tf.PaliGemmaProcessor(
            images, tokenizer, chat_template=template(image="<image>")
        )
        return tf.PaliGemmaForConditionalGeneration(config), processor

    return build


def _mllama() -> Built:
    tokenizer = byte_tokenizer(image_token="<|image|>")
    config = tf.MllamaConfig(
        text_config={
            **TEXT,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "initializer_range": 0.3,
        },
        image_token_index=tokenizer.image_token_id,
    )
    processor = tf.MllamaProcessor(
        tf.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2),
        tokenizer,
        chat_template=template(image="<|image|>"),
    )
    model = tf.MllamaForConditionalGeneration(config)
    for name, gate in model.named_parameters():
        if name.endswith("gate") or "_gate" in name:  # closed at first: images would not be seen
            gate.data.fill_(1.0)
    return model, processor


_KV = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_SHARED = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
}
_SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    family.name: family
    for family in (
        Family("qwen2.5-vl", _qwen2_5_vl),
        Family("qwen3-vl", _qwen3_vl),
        Family("gemma3", _gemma3, embeddings=False),
        Family("gemma4", _gemma4(), embeddings=False),
        Family("gemma4-31b", _gemma4(**_KV), embeddings=False),
        Family("gemma4-e2b", _gemma4(**_SHARED), embeddings=False),
        Family("llava", _llava),
        Family("internvl", _internvl),
        Family("smolvlm", _smolvlm),
        Family("paligemma", _paligemma("gemma"), needs_image=True, embeddings=False),
        Family(
            "paligemma2",
            _paligemma("gemma2", query_pre_attn_scalar=8, **_SLIDING),
            mode="chain",  # it takes one mask for all layers
            needs_image=True,
            embeddings=False,
            static=False,
        ),
        Family("mllama", _mllama),
    )
}


@cache
def made(name: str) -> Built:
    """A family's seeded model and its processor. Shared by the tests: leave them as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = FAMILIES[name].build()
    model.eval()
    config = model.generation_config
    config.eos_token_id, config.pad_token_id, config.bos_token_id = None, 256, 257
    return model, processor
