"""Tiny models of every supported family: real transformers classes, random weights, no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as tf
from torch import nn
from transformers import PreTrainedModel

VOCAB = 96
WINDOW = 16
TEXT = range(3, 90)  # token ids of prompts; lower ids are special tokens, higher ones of images
BOTH = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Family:
    """A model family, and its expected mode: "tree", "chain" or "plain"."""

    name: str
    build: Callable[[], PreTrainedModel]
    mode: str
    dtypes: tuple[torch.dtype, ...] = BOTH
    kind: str = "decoder"  # or "recurrent", "encoder-decoder" or "speech"


def _decoder(name: str, **changes: Any) -> Callable[[], PreTrainedModel]:
    """Build `<name>Config` and `<name>ForCausalLM` in a size that takes milliseconds to build."""

    def build() -> PreTrainedModel:
        settings: dict[str, Any] = {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            "initializer_range": 0.3,  # the usual 0.02 gives nearly uniform logits in this size
            **changes,
        }
        config = getattr(tf, f"{name}Config")(**settings)
        stem = name.removesuffix("Text")
        names = (f"{stem}ForCausalLM", f"{stem}LMHeadModel")
        kind = next(getattr(tf, each) for each in names if hasattr(tf, each))
        return kind(config)

    return build


def _encoder_decoder(name: str, **changes: Any) -> Callable[[], PreTrainedModel]:
    """Build `<name>Config` and `<name>ForConditionalGeneration`."""

    def build() -> PreTrainedModel:
        settings: dict[str, Any] = {
            "vocab_size": VOCAB,
            "d_model": 32,
            "decoder_start_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            **changes,
        }
        config = getattr(tf, f"{name}Config")(**settings)
        return getattr(tf, f"{name}ForConditionalGeneration")(config)

    return build


def _qwen2_vl() -> PreTrainedModel:
    config = tf.Qwen2VLConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    return tf.Qwen2VLForConditionalGeneration(config)


def _centered(build: Callable[[], PreTrainedModel]) -> Callable[[], PreTrainedModel]:
    """Center the weights that read the MLPs' activations.

    GELU and ReLU have a positive mean. Random weights map this mean to one vector, the same at
    every position, so that greedy text would repeat one token.
    """

    def centered() -> PreTrainedModel:
        model = build()
        for name, module in model.named_modules():
            readers = ("dense_4h_to_h", "down_proj", "fc2", "wo")
            if isinstance(module, nn.Linear) and name.endswith(readers):
                module.weight.data -= module.weight.data.mean(1, keepdim=True)
        return model

    return centered


def _t5() -> PreTrainedModel:
    """Build a T5. It always ties its embeddings: random signs in the last norm keep a token from
    predicting itself.
    """
    settings = {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.5}
    model = _centered(_encoder_decoder("T5", **settings))()
    weight = model.decoder.final_layer_norm.weight.data
    weight *= torch.randint(0, 2, weight.shape) * 2 - 1
    return model


def _sliding() -> dict[str, Any]:
    return {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


_BART = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 256,
    "init_std": 0.4,
    "forced_eos_token_id": None,
}
_WHISPER = {
    **{key: value for key, value in _BART.items() if "position" not in key and "eos" not in key},
    "num_mel_bins": 8,
    "max_source_positions": 30,
    "max_target_positions": 128,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "num_mtp_layers": 0,
}
_LLAMA4 = {
    "head_dim": 8,
    "num_local_experts": 4,
    "intermediate_size_mlp": 48,
    "attention_chunk_size": WINDOW,
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
    "moe_layers": [1],
}
_JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "num_experts": 2,
    "mamba_d_state": 8,
    "use_mamba_kernels": False,
}
_QWEN3_NEXT = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 24,
    "layer_types": ["linear_attention", "full_attention"],
    **_MOE,
}
_LFM2 = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
_MAMBA2 = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8}
_EAGER = {"attn_implementation": "eager"}
_UNTIED = {"tie_word_embeddings": False}  # scaled tied embeddings would repeat one token
_WIDER = {"initializer_range": 0.5}  # where 0.3 still gives repetitive text, or near ties
_GEMMA2 = {"head_dim": 8, "query_pre_attn_scalar": 8, **_UNTIED, **_sliding()}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **_UNTIED}
_GPT_NEO = {
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": WINDOW,
    **_UNTIED,
}
_GPT_OSS = {
    "head_dim": 8,
    "num_local_experts": 4,
    "max_position_embeddings": 131072,  # what its default YaRN factor fits
    **_EAGER,
    **_sliding(),
}
_MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "use_cache": True}
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, **_UNTIED}
_SMOLLM3 = {"no_rope_layers": [1, 0], **_UNTIED, **_WIDER}
_QWEN2_WINDOW = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}
_DYNAMIC_ROPE = {
    "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
}

_TREE = (
    Family("llama", _decoder("Llama"), "tree"),
    Family("qwen2", _decoder("Qwen2"), "tree"),
    Family("qwen2-window", _decoder("Qwen2", **_QWEN2_WINDOW), "tree"),
    Family("qwen3", _decoder("Qwen3", head_dim=8, **_WIDER), "tree"),
    Family("mistral-window", _decoder("Mistral", sliding_window=WINDOW), "tree"),
    Family("gemma", _decoder("Gemma", head_dim=8, **_UNTIED, **_WIDER), "tree"),
    Family("gemma2", _decoder("Gemma2", **_EAGER, **_GEMMA2), "tree"),
    Family("gemma3", _decoder("Gemma3Text", **_GEMMA2), "tree"),
    Family("phi3", _decoder("Phi3"), "tree"),
    Family("phi3-window", _decoder("Phi3", sliding_window=WINDOW, **_WIDER), "tree"),
    Family("gpt2", _decoder("GPT2", **_GPT2), "tree"),
    Family("gpt-bigcode", _decoder("GPTBigCode", **_GPT2), "tree"),
    Family("opt", _centered(_decoder("OPT", **_OPT)), "tree"),
    Family("gpt-neox", _centered(_decoder("GPTNeoX", **_WIDER)), "tree"),
    Family("gptj", _decoder("GPTJ", **_GPT2, rotary_dim=4), "tree"),
    Family("falcon", _centered(_decoder("Falcon", **_UNTIED)), "tree"),
    Family("stablelm", _decoder("StableLm"), "tree"),
    Family("starcoder2", _decoder("Starcoder2", **_UNTIED), "tree"),
    Family("olmo2", _decoder("Olmo2"), "tree"),
    Family("smollm3", _decoder("SmolLM3", **_SMOLLM3), "tree"),
    Family("cohere2", _decoder("Cohere2", logit_scale=1.0, **_sliding(), **_WIDER), "tree"),
    Family("gpt-oss", _decoder("GptOss", **_GPT_OSS), "tree"),
    Family("mixtral", _decoder("Mixtral", num_local_experts=4), "tree"),
    Family("qwen3-moe", _decoder("Qwen3Moe", head_dim=8, **_MOE, **_WIDER), "tree"),
    Family("deepseek-v3", _decoder("DeepseekV3", **_DEEPSEEK), "tree"),
    Family("llama4", _decoder("Llama4Text", **_LLAMA4), "tree"),
    Family("qwen2-vl", _qwen2_vl, "tree"),
    Family("whisper", _centered(_encoder_decoder("Whisper", **_WHISPER)), "tree", kind="speech"),
    Family("t5", _t5, "tree", kind="encoder-decoder"),
    Family("bart", _centered(_encoder_decoder("Bart", **_BART)), "tree", kind="encoder-decoder"),
    Family("qwen3-next", _decoder("Qwen3Next", **_QWEN3_NEXT), "tree", kind="recurrent"),
)
_CHAIN = (
    Family("falcon-alibi", _centered(_decoder("Falcon", alibi=True, **_UNTIED)), "chain"),
    Family("bloom", _centered(_decoder("Bloom", **_UNTIED)), "chain"),
    Family("mpt", _centered(_decoder("Mpt", **_MPT, **_UNTIED)), "chain"),
    Family("gpt-neo", _decoder("GPTNeo", **_GPT_NEO), "chain"),
    Family("lfm2", _decoder("Lfm2", **_LFM2), "chain"),
)
_PLAIN = (
    Family("mamba2", _decoder("Mamba2", **_MAMBA2), "plain"),
    Family("jamba", _decoder("Jamba", **_JAMBA), "plain"),
    Family("llama-dynamic-rope", _decoder("Llama", **_DYNAMIC_ROPE), "plain"),
)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_TREE, *_CHAIN, *_PLAIN)}


@cache
def make(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """The seeded model of a family, in eval mode. Tests share it, and must leave it unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[name].build().eval()
    if model.get_experts_implementation():  # grouped_mm does not support float64
        model.set_experts_implementation("eager")
    model.to(dtype)
    config = model.generation_config
    config.eos_token_id, config.pad_token_id, config.bos_token_id = None, 0, 1
    return model


def prompt(model: PreTrainedModel, length: int = 24, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of `generate`: a text with some repetition, or sound for Whisper."""
    generator = torch.Generator().manual_seed(seed)
    if model.config.model_type == "whisper":
        sound = torch.randn(1, 8, 60, generator=generator, dtype=torch.float32)
        return {"input_features": sound.to(model.dtype)}
    ids = torch.randint(TEXT.start, TEXT.stop, (1, length), generator=generator)
    if length >= 12:
        ids[0, -4:] = ids[0, 2:6]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
