"""What no rule of the recipe can know, by `model_type`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

Shrink = Callable[..., PreTrainedConfig]

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {**_ROPE, "mrope_section": [2, 1, 1]}
_TWO = {"num_hidden_layers": 2}
_WHERE_MROPE = """
    glm4v_text glm46v_text glm_ocr_text qwen2_vl_text qwen2_5_vl_text paddleocr_vl_text
    qwen2_5_omni_text
""".split()  # noqa: SIM905
_SAM = {"output_channels": 16, "num_hidden_layers": 2, "global_attn_indexes": [1]}
_TOKENIZER = {"num_filters": 4, "downsampling_ratios": [2, 5], "depths": [1, 1, 1]}
_CODES = range(30, 46)  # tokens that stand for what an image tokenizer writes

CONFIGS: dict[str, dict[str, Any]] = {
    # Layers of each kind, where integers or nothing at all say which are which.
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {**_TWO, "layer_types": ["linear_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {**_TWO, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {**_TWO, "layer_types": ["conv", "full_attention"]},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {**_TWO, "attn_layers": ["local", "lsh"], "axial_pos_embds": False},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "step3p5": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "step3p7_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    # Sizes that have no default, or one that depends on others.
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": _MROPE, "full_attention": _MROPE},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v2": {"n_group": 2, "topk_group": 1},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "ernie4_5_vl_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    "glm4v_moe_text": {"head_dim": 16, "rope_parameters": {**_MROPE, "partial_rotary_factor": 0.5}},
    "diffusion_gemma": {"canvas_length": 16},
    "hunyuan_vl_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 1, 1]}},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "mimi": {"upsample_groups": 32, "num_filters": 4},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "nemotron_h": {"mamba_num_heads": 8, "n_groups": 2},
    "nemotron3_diarization": {
        "chunk_length": 16,
        "chunk_left_context": 2,
        "chunk_right_context": 2,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "qwen2_5_omni_thinker": {"vision_start_token_id": 110},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 110},
    "radio": {"video_temporal_patch_size": 2},
    "timm_wrapper": {"hidden_size": 32, "model_args": {"embed_dim": 32}},
    "inkling_vision": {"num_hidden_layers": 4},  # fewer need scipy
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 100},
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0, "ffn_round_up_to_multiple_of": 8},
    "xmod": {"default_language": "en_XX"},
    # Towers that are large in ways of their own.
    "florence_vision": {
        "embed_dim": [8, 16],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "depths": [1, 1],
        "patch_size": [4, 2],
        "patch_stride": [4, 2],
        "patch_padding": [0, 0],
        "patch_prenorm": [False, True],
    },
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1]},
    "chameleon_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 8},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "codebook_size": 16},
    "muse_spark_audio": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]},
    "vibevoice_acoustic_tokenizer": _TOKENIZER,
    "vibevoice_acoustic_tokenizer_encoder": _TOKENIZER,
    "vibevoice_acoustic_tokenizer_decoder": _TOKENIZER,
    # Vectors that a picture becomes.
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 120},
    "instructblip": {"image_token_index": 120},
    "instructblipvideo": {"video_token_index": 120},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n": {"vision_soft_tokens_per_image": 16},
    "llama4_vision_model": {"intermediate_size": 128},  # the width by four pixels
    "llava_next": {"image_grid_pinpoints": [[16, 16]]},
    "llava_next_video": {"image_grid_pinpoints": [[16, 16]]},
    "llava_onevision": {"image_grid_pinpoints": [[16, 16]]},
    "mllama_vision_model": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 96},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    # TokenText that a model looks up by name.
    "chameleon": {
        "vocabulary_map": {
            "<image>": 120,
            **{f"IMGIMG{'ABCDEFGHIJ'[i]}Z": token for i, token in enumerate(_CODES[:8])},
        }
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 120,
            "<|extra_200|>": 121,
            **{f"<|visual token {i:06}|>": token for i, token in enumerate(_CODES)},
        }
    },
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [1, 1, 1, 1],
        "image_grid_pinpoints": [[16, 16]],
    },
}
for _name in _WHERE_MROPE:
    CONFIGS.setdefault(_name, {})["rope_parameters"] = _MROPE
CONFIGS["qwen2_5_omni_text"] = {"rope_parameters": _MROPE}


_ALTERNATING = ["sliding_attention", "full_attention"]
VARIANTS: dict[str, dict[str, Any]] = {
    "bert+encoder": {"is_decoder": False},  # its default, which reads both ways, without a cache
    "deepseek_v32+index": {"index_topk": 16},
    "doge+window": {"keep_window_size": 16},
    "falcon+alibi": {"alibi": True},
    "gemma4_text+k_eq_v": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "gemma4_text+alone": {"num_kv_shared_layers": 0},
    "granitemoehybrid+attention": {"layer_types": ["full_attention"] * 2},
    "llama+dynamic": {"rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 4.0}},
    "mistral+window": {"sliding_window": 16},
    "mpt+cache": {"use_cache": True},
    "qwen2+window": {"use_sliding_window": True, "layer_types": _ALTERNATING, "sliding_window": 16},
}
"""Other configurations of the same model_types, of which much depends."""


def _dbrx(_: Shrink) -> PreTrainedConfig:
    attention = {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}
    feed_forward = {"hidden_size": 32, "ffn_hidden_size": 48, "moe_top_k": 2}
    config = tf.DbrxConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=128)
    for part, settings in ((config.attn_config, attention), (config.ffn_config, feed_forward)):
        for name, value in settings.items():
            setattr(part, name, value)
    return config


def _fun_asr_nano(shrink: Shrink) -> PreTrainedConfig:
    audio, text = tf.FunAsrNanoEncoderConfig(), tf.Qwen3Config()
    adaptor = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 8}
    return tf.FunAsrNanoConfig(
        audio_config=shrink(audio),
        text_config=shrink(text),
        adaptor_config={**adaptor, "num_hidden_layers": 1, "projector_hidden_size": 32},
        audio_token_id=120,
    )


def _granite4_vision(shrink: Shrink) -> PreTrainedConfig:
    config = shrink(tf.Granite4VisionConfig())
    config.qformer_config.num_attention_heads = 2  # it divides the width by 64
    return config


def _with_vision(name: str) -> Callable[[Shrink], PreTrainedConfig]:
    """With the vision tower that is left out unless it is asked for."""

    def build(shrink: Shrink) -> PreTrainedConfig:
        return shrink(CONFIG_MAPPING[name](vision_config=CONFIG_MAPPING[f"{name}_vision"]()))

    return build


BUILD: dict[str, Callable[[Shrink], PreTrainedConfig]] = {
    "gemma4": _with_vision("gemma4"),
    "gemma4_unified": _with_vision("gemma4_unified"),
    "dbrx": _dbrx,
    "granite4_vision": _granite4_vision,
    "fun_asr_nano": _fun_asr_nano,
}


class Tower(nn.Module):
    """Stands in for a vision tower of timm's, which is not installed: patches, projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.patches(pixel_values))


@contextmanager
def stand_ins() -> Iterator[None]:
    """timm is not needed for what is compared here."""
    original = tf.AutoModel.from_config

    def from_config(config: PreTrainedConfig, **settings: Any) -> nn.Module:
        if config.model_type in ("timm_wrapper", "gemma3n_vision"):
            return Tower(config.hidden_size)
        made: nn.Module = original(config, **settings)
        return made

    tf.AutoModel.from_config = from_config
    try:
        yield
    finally:
        tf.AutoModel.from_config = original
