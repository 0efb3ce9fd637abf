"""Tiny models of every family whose recurrent layers verify trees: real classes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.sweep.recipe import build

VOCAB = 96
TEXT = range(4, 90)
LAYERS = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]

_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": len(LAYERS),
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": LAYERS,
    "initializer_range": 0.3,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_KIMI = {
    "num_key_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}


def _made(config: str, **settings: Any) -> Callable[[], PreTrainedModel]:
    stem = config.removesuffix("Config").removesuffix("Text")

    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        return getattr(tf, f"{stem}ForCausalLM")(getattr(tf, config)(**{**_BASE, **settings}))

    return make


BUILD: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_5": _made("Qwen3_5TextConfig", **_DELTA, head_dim=16),
    "qwen3_5_moe": _made("Qwen3_5MoeTextConfig", **_DELTA, **_EXPERTS, head_dim=16),
    "qwen3_next": _made(
        "Qwen3NextConfig", **_DELTA, **_EXPERTS, head_dim=16, decoder_sparse_step=1
    ),
    "olmo_hybrid": _made("OlmoHybridConfig", **_DELTA),
    "kimi_linear": _made("KimiLinearConfig", **_KIMI),
    "qwen4_exp": partial(build, "causal", "qwen4_exp_text"),
    "bailing_hybrid": partial(build, "causal", "bailing_hybrid"),
}
DELTAS = list(BUILD)
MAMBAS = ["bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2"]
BUILD |= {name: partial(build, "causal", name) for name in MAMBAS}
FAMILIES = [*DELTAS, *MAMBAS]


@cache
def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a family; the same one for each call."""
    model = BUILD[name]().eval().to(dtype)
    model.generation_config.eos_token_id = None
    return model


def text(length: int, seed: int = 0) -> torch.Tensor:
    """int64[1, length], a random text."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(TEXT.start, TEXT.stop, (1, length), generator=draw)
