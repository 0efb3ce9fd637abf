"""Tiny models of the recurrent and hybrid families, built by the recipe of the sweep."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.sweep.recipe import TEXT, build

CHAINS = (
    "bailing_hybrid",
    "bamba",
    "deepseek_v4",
    "falcon_h1",
    "glm5_next",
    "granitemoehybrid",
    "kimi_linear",
    "minimax",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "qwen4_exp_text",
    "zaya",
)
"""Drafted as chains: a forward pass over several tokens continues a kept state."""

OUTSIDE = "a recurrent state outside the cache"
OFF = "found a chain's logits off"
PLAIN = {
    "falcon_mamba": OUTSIDE,
    "jamba": OFF,
    "mamba": OUTSIDE,
    "mamba2": OUTSIDE,
    "nemotron_h": OFF,
    "recurrent_gemma": OUTSIDE,
    "rwkv": OUTSIDE,
    "xlstm": OUTSIDE,
    "zamba": OFF,
    "zamba2": OFF,
}
"""Run plainly, with a reason that contains this."""


@cache
def make(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The seeded model of a family. Tests share it, and must leave it unchanged."""
    with torch.random.fork_rng(devices=[]):
        mapping = "image-text" if name == "glm5_next" else "causal"
        model = build(mapping, name)
    if model.get_experts_implementation():  # grouped_mm does not support float64
        model.set_experts_implementation("eager")
    return model.to(dtype)


def text(length: int, seed: int = 1, pads: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of `generate`: random tokens, the first of them padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TEXT.start, TEXT.stop, (1, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :pads], mask[0, :pads] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def tensors(thing: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a cache, by path."""
    if isinstance(thing, torch.Tensor):
        return {path: thing}
    if isinstance(thing, dict):
        parts = thing.items()
    elif isinstance(thing, list | tuple):
        parts = dict(enumerate(thing)).items()
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        parts = vars(thing).items()
    else:
        return {}
    inner = [tensors(part, f"{path}.{name}") for name, part in parts]
    return {key: tensor for own in inner for key, tensor in own.items()}


DOUBLE = frozenset({"minimax", "zaya"})
"""Families that compute their states in the dtype of the weights; the others do in float32."""


def assert_same_cache(name: str, found: Any, expected: Any) -> None:
    """Check that two caches of a family's float64 model hold the same."""
    one, other = tensors(found), tensors(expected)
    assert one.keys() == other.keys()
    limit = 1e-12 if name in DOUBLE else 3e-5
    compared = 0
    for path, tensor in other.items():
        assert one[path].shape == tensor.shape, path
        if tensor.is_floating_point() and tensor.numel():
            scale = float(tensor.abs().max().clamp_min(1.0))
            assert float((one[path] - tensor).abs().max()) <= limit * scale, path
            compared += 1
    assert compared
