"""Tiny models of every supported family: real transformers classes, random weights, no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

VOCAB = 96
WINDOW = 16
BOTH = (torch.float32, torch.float64)
SINGLE = (torch.float32,)


@dataclass(frozen=True)
class Family:
    """A model family, and how it is expected to be run: "tree", "chain" or "plain"."""

    build: Callable[[], PreTrainedModel]
    mode: str
    dtypes: tuple[torch.dtype, ...] = BOTH


def _decoder(name: str, eager: bool = False, **changes: Any) -> Callable[[], PreTrainedModel]:
    """Build `<name>Config` and `<name>ForCausalLM` in a size that is made in milliseconds."""

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
            "initializer_range": 0.3,
            **changes,
        }
        config = getattr(tf, f"{name}Config")(**settings)
        if eager:
            config._attn_implementation = "eager"
        stem = name.removesuffix("Text")
        names = (f"{stem}ForCausalLM", f"{stem}LMHeadModel")
        kind = next(getattr(tf, each) for each in names if hasattr(tf, each))
        return kind(config)

    return build


def _sliding(layers: int = 2) -> dict[str, Any]:
    types = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    return {"sliding_window": WINDOW, "layer_types": types}


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


def _encoder_decoder(name: str, **changes: Any) -> Callable[[], PreTrainedModel]:
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


_BART = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 256,
    "init_std": 0.3,
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
}
_UNTIED = {"tie_word_embeddings": False}  # scaled tied embeddings would repeat one token
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_DYNAMIC_ROPE = {
    "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
}

FAMILIES: dict[str, Family] = {
    "llama": Family(_decoder("Llama"), "tree"),
    "qwen2": Family(_decoder("Qwen2"), "tree"),
    "qwen2-window": Family(
        _decoder("Qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=WINDOW),
        "tree",
    ),
    "qwen3": Family(_decoder("Qwen3", head_dim=8), "tree"),
    "mistral-window": Family(_decoder("Mistral", sliding_window=WINDOW), "tree"),
    "gemma": Family(_decoder("Gemma", head_dim=8, **_UNTIED), "tree"),
    # float64 under eager attention: transformers' own softmax is float32, so rounding differs
    "gemma2": Family(_decoder("Gemma2", eager=True, head_dim=8, **_UNTIED, **_sliding()), "tree"),
    "gemma3": Family(_decoder("Gemma3Text", head_dim=8, **_UNTIED, **_sliding()), "tree"),
    "phi3": Family(_decoder("Phi3"), "tree"),
    "phi3-window": Family(_decoder("Phi3", sliding_window=WINDOW), "tree"),
    "gpt2": Family(_decoder("GPT2", **_GPT2), "tree"),
    "gpt-bigcode": Family(_decoder("GPTBigCode", **_GPT2), "tree"),
    "opt": Family(
        _decoder(
            "OPT", ffn_dim=48, word_embed_proj_dim=32, init_std=0.3, activation_function="relu"
        ),
        "tree",
    ),
    "gpt-neox": Family(_decoder("GPTNeoX"), "tree"),
    "gptj": Family(_decoder("GPTJ", **_GPT2, rotary_dim=4), "tree", SINGLE),
    "falcon": Family(_decoder("Falcon", alibi=False, new_decoder_architecture=False), "tree"),
    "stablelm": Family(_decoder("StableLm"), "tree"),
    "starcoder2": Family(_decoder("Starcoder2"), "tree"),
    "olmo2": Family(_decoder("Olmo2"), "tree"),
    "smollm3": Family(_decoder("SmolLM3"), "tree"),
    "cohere2": Family(_decoder("Cohere2", logit_scale=1.0, **_sliding()), "tree"),
    "gpt-oss": Family(
        _decoder("GptOss", eager=True, head_dim=8, num_local_experts=4, **_sliding()), "tree"
    ),
    "mixtral": Family(_decoder("Mixtral", num_local_experts=4), "tree"),
    "qwen3-moe": Family(_decoder("Qwen3Moe", head_dim=8, **_MOE), "tree"),
    "deepseek-v3": Family(_decoder("DeepseekV3", **_DEEPSEEK), "tree", SINGLE),
    "llama4": Family(
        _decoder(
            "Llama4Text",
            head_dim=8,
            num_local_experts=4,
            intermediate_size_mlp=48,
            attention_chunk_size=WINDOW,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
            moe_layers=[1],
        ),
        "tree",
    ),
    "qwen2-vl": Family(_qwen2_vl, "tree"),
    "whisper": Family(_encoder_decoder("Whisper", **_WHISPER), "tree"),
    "falcon-alibi": Family(_decoder("Falcon", alibi=True), "chain"),
    "bloom": Family(_decoder("Bloom", n_layer=2, n_head=4, **_UNTIED), "chain"),
    "mpt": Family(
        _decoder(
            "Mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=256, use_cache=True, **_UNTIED
        ),
        "chain",
    ),
    "gpt-neo": Family(
        _decoder(
            "GPTNeo",
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW,
        ),
        "chain",
        SINGLE,
    ),
    "t5": Family(
        _encoder_decoder(
            "T5",
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            initializer_factor=1.5,
        ),
        "chain",
    ),
    "bart": Family(_encoder_decoder("Bart", **_BART), "chain"),
    "lfm2": Family(
        _decoder("Lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8), "chain"
    ),
    "mamba2": Family(
        _decoder(
            "Mamba2", num_heads=8, head_dim=8, state_size=8, n_groups=2, expand=2, chunk_size=8
        ),
        "plain",
    ),
    "jamba": Family(
        _decoder(
            "Jamba",
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            num_experts=2,
            mamba_d_state=8,
            use_mamba_kernels=False,
        ),
        "plain",
        SINGLE,
    ),
    "qwen3-next": Family(
        _decoder(
            "Qwen3Next",
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=24,
            layer_types=["linear_attention", "full_attention"],
            **_MOE,
        ),
        "plain",
        SINGLE,
    ),
    "llama-dynamic-rope": Family(_decoder("Llama", **_DYNAMIC_ROPE), "plain"),
}


@cache
def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The seeded model of a family, in eval mode. Shared by the tests: leave it as you found it."""
    torch.manual_seed(0)
    model = FAMILIES[name].build().eval()
    if model.get_experts_implementation():  # grouped_mm knows no float64
        model.set_experts_implementation("eager")
    model.to(dtype)
    config = model.generation_config
    config.eos_token_id, config.pad_token_id, config.bos_token_id = None, 0, 1
    return model


def prompt(model: PreTrainedModel, length: int = 24, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of `generate`: text with some repetition in it, or for Whisper sound."""
    generator = torch.Generator().manual_seed(seed)
    if model.config.model_type == "whisper":
        sound = torch.randn(1, 8, 60, generator=generator, dtype=torch.float32)
        return {"input_features": sound.to(model.dtype)}
    ids = torch.randint(3, 90, (1, length), generator=generator)
    if length >= 12:
        ids[0, -4:] = ids[0, 2:6]
    return {"input_ids": ids}
