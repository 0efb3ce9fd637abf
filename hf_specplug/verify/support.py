"""What a model and a call allow: a tree, a chain where only that is right, else plain.

Four families are silently wrong under a tree mask, so a tree is opt-in by evidence: a listed family
(each measured, and held by the identity tests), or a probe that compares a tree with its paths.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, StaticLayer, StaticSlidingWindowLayer
from transformers.generation.configuration_utils import GenerationMode

from hf_specplug.kernels.tree import ancestors
from hf_specplug.verify.attention import NAME as FOLDED
from hf_specplug.verify.cache import CHAIN, PLAIN, TREE, Rollback, rollback
from hf_specplug.verify.masks import TreeMasks, reaches

PROVEN = frozenset(
    """
    codegen cohere2 deepseek_v3 falcon gemma gemma2 gemma3 gemma3_text gpt2 gpt_bigcode
    gpt_neox gpt_oss gptj llama llama4_text mistral mixtral olmo2 opt phi3 qwen2 qwen2_moe
    qwen2_vl qwen2_vl_text qwen3 qwen3_moe smollm3 stablelm starcoder2 whisper
    """.split()  # noqa: SIM905
)
"""`model_type`s whose tree logits equal those of the single paths, in transformers 5.23."""

SLOT_POSITIONS = frozenset({"gpt_neo"})
"""`model_type`s that take position ids, but whose attention goes by the slot in the cache."""


@dataclass(frozen=True, slots=True)
class Support:
    """How a call is run: "tree", "chain" or "plain", and why it is not a tree ("" if it is)."""

    mode: str
    reason: str = ""


def position_argument(model: PreTrainedModel) -> str | None:
    """The name under which `forward` takes positions, None if it counts cache slots."""
    name = "decoder_position_ids" if model.config.is_encoder_decoder else "position_ids"
    return name if name in inspect.signature(model.forward).parameters else None


def of_model(model: PreTrainedModel) -> Support:
    """What a model can check, whatever the call. May run a few short forward passes."""
    config = model.config.get_text_config(decoder=True)
    name = config.model_type
    if getattr(model, "_is_stateful", False):
        return Support(PLAIN, f"{name} has a recurrent state that cannot be rolled back")
    if "dynamic" in _rope_types(config):
        return Support(PLAIN, f"{name} with dynamic RoPE scaling depends on the width of a forward")
    types = set(getattr(config, "layer_types", None) or ())
    if types & {"linear_attention", "mamba", "hybrid", "recurrent"}:
        return Support(PLAIN, f"{name} has a recurrent state that cannot be rolled back")
    if position_argument(model) is None or name in SLOT_POSITIONS:
        return Support(CHAIN, f"{name} takes positions from cache slots, so siblings would differ")
    if getattr(config, "alibi", False):
        return Support(CHAIN, f"{name} with ALiBi takes distances from cache slots")
    if reaches(model.config) is None:
        return Support(CHAIN, f"{name} has layers that look at neighbours instead of a mask")
    if config._attn_implementation not in ("sdpa", FOLDED, "eager"):
        return Support(CHAIN, f"attention {config._attn_implementation!r} takes no tree mask")
    if model.config.model_type == "paligemma" and None not in (reaches(model.config) or {}):
        return Support(CHAIN, "paligemma takes one mask for all layers")
    if name not in PROVEN:
        return _probe(model)
    return Support(TREE)


def of_call(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    config: GenerationConfig,
    model_kwargs: Mapping[str, Any],
    static: bool = False,
) -> Support:
    """What one `generate` call allows, beyond what the model does.

    Args:
        static: whether the static engine may run it, if trees are right.
    """
    reason = ""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return Support(PLAIN, f"{mode.value} is not drafted")
    if input_ids.shape[0] != 1:
        return Support(PLAIN, f"a batch of {input_ids.shape[0]} sequences is not drafted yet")
    cache = model_kwargs.get("past_key_values")
    if not model_kwargs.get("use_cache", True) or cache is None:
        return Support(PLAIN, "drafts need a cache (use_cache=True)")
    if config.return_dict_in_generate:
        for wanted in ("output_attentions", "output_hidden_states"):
            if getattr(config, wanted):
                return Support(PLAIN, f"{wanted} is per token, but drafts are checked together")
    if _llama4_scale_start(model) < config.max_length:
        static = False
        reason = "Llama 4 scales attention by cache slot in a text of this length"
    if not static and model._valid_auto_compile_criteria(dict(model_kwargs), config):
        return Support(PLAIN, "a compiled static cache is left to transformers")
    if reason:
        return Support(CHAIN, reason)
    limit = _longrope_limit(model)
    if limit is not None and input_ids.shape[1] <= limit < config.max_length:
        return Support(PLAIN, f"the text may cross {limit} tokens, where longrope changes factors")
    if static:
        return Support(TREE)
    return Support(*rollback(cache, config.max_length))


def is_static(
    model: PreTrainedModel, config: GenerationConfig, model_kwargs: Mapping[str, Any]
) -> bool:
    """Whether the static engine should run a call that can be checked as trees.

    Where there is CUDA, it should if it can; elsewhere if a static cache was asked for.
    `disable_compile` in the generation config is a no.
    """
    cache = model_kwargs.get("past_key_values")
    text = model.config.get_text_config(decoder=True)
    quantizer = getattr(model, "hf_quantizer", None)
    kinds = {type(layer) for layer in getattr(cache, "layers", ())}
    given = kinds and kinds <= {StaticLayer, StaticSlidingWindowLayer}
    return bool(
        not config.disable_compile
        and (given or (is_accelerated(model) and type(cache) is DynamicCache))
        and not getattr(cache, "offloading", False)
        and not model.config.is_encoder_decoder
        and len(set(getattr(model, "hf_device_map", {}).values())) <= 1
        and (quantizer is None or quantizer.is_compileable)
        and model._can_compile_fullgraph
        and not getattr(text, "num_kv_shared_layers", 0)
        and is_generic(model)
        and not any(model_kwargs.get(key) is not None for key in PER_TOKEN)
    )


def is_accelerated(model: PreTrainedModel) -> bool:
    """Whether forward passes can be captured as CUDA graphs."""
    return bool(model.device.type == "cuda")


PER_TOKEN = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Arguments of the forward pass that have a value for each token."""


def is_generic(model: PreTrainedModel) -> bool:
    """Whether inputs are prepared in the same way at every step.

    Phi-3 differs only where longrope changes factors, and such calls are run plainly.
    """
    own = type(model).prepare_inputs_for_generation
    generic = own is GenerationMixin.prepare_inputs_for_generation
    return generic or model.config.model_type == "phi3"


def _llama4_scale_start(model: PreTrainedModel) -> int:
    """The length from which layers without RoPE scale queries by slot; huge for other models."""
    config = model.config.get_text_config(decoder=True)
    if config.model_type == "llama4_text" and config.attn_temperature_tuning:
        return int(config.floor_scale) - 1
    return 1 << 62


def _rope_types(config: Any) -> set[str]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return {str(part.get("rope_type", "default")) for part in [rope, *nested]}


def _longrope_limit(model: PreTrainedModel) -> int | None:
    config = model.config.get_text_config(decoder=True)
    if "longrope" not in _rope_types(config):
        return None
    rope = config.rope_parameters
    limit = rope.get("original_max_position_embeddings")
    return int(limit or getattr(config, "original_max_position_embeddings", 0)) or None


_PROBE_PARENTS = np.array([-1, -1, 0, 0, 1, 2, 4], dtype=np.int32)


def _probe(model: PreTrainedModel) -> Support:
    """Compare a small tree with its paths, and the cache after keeping one of them.

    It sees wrong positions, masks and caches, not windows longer than the probe.
    """
    name = model.config.get_text_config(decoder=True).model_type
    if model.config.is_encoder_decoder:
        return Support(CHAIN, f"{name} is not among the families proven for trees")
    try:
        error = _probe_error(model)
    except Exception as problem:
        return Support(CHAIN, f"a probe of {name} failed: {type(problem).__name__}: {problem}")
    exact = model.dtype in (torch.float32, torch.float64)
    if error > (1e-3 if exact else 0.15):
        return Support(CHAIN, f"a probe of {name} found tree logits off by {error:.2g} deviations")
    return Support(TREE)


@torch.no_grad()
def _probe_error(model: PreTrainedModel) -> float:
    """Largest difference between tree and path logits, in standard deviations of the logits."""
    vocab = model.config.get_text_config(decoder=True).vocab_size
    prompt = [(7 * i + 3) % vocab for i in range(10)]
    tokens = [(11 * i + 5) % vocab for i in range(len(_PROBE_PARENTS) + 1)]  # root first
    parents = [int(parent) + 1 for parent in _PROBE_PARENTS]
    paths = [[0]]
    for node, parent in enumerate(parents, start=1):
        paths.append([*paths[parent], node])
    depths = np.array([len(path) - 1 for path in paths], dtype=np.int64)

    forward = _forward(model)
    cache = forward(prompt, None, None, None).past_key_values
    undo = Rollback(cache)
    masks = TreeMasks(
        model.config, cache, model.dtype, _is_eager(model), model.device, prompt_mask=None
    )
    seen = ancestors(_PROBE_PARENTS)
    mask = masks.build(seen, depths, len(prompt))
    tree = forward(tokens, cache, len(prompt) + depths, mask).logits[0].float()
    kept = paths[-1]
    undo.keep(len(tokens), kept)
    after = forward([tokens[1]], cache, np.array([len(prompt) + len(kept)]), None).logits[0, -1]

    worst = 0.0
    for node, path in enumerate(paths):
        text = prompt + [tokens[i] for i in path]
        plain = forward(text, None, None, None).logits[0, -1].float()
        worst = max(worst, float((plain - tree[node]).abs().max() / plain.std()))
    text = prompt + [tokens[i] for i in kept] + [tokens[1]]
    plain = forward(text, None, None, None).logits[0, -1].float()
    return max(worst, float((plain - after.float()).abs().max() / plain.std()))


def _forward(model: PreTrainedModel) -> Callable[..., Any]:
    def run(tokens: list[int], cache: Any, positions: Any, mask: Any) -> Any:
        where = None if positions is None else torch.as_tensor(positions, device=model.device)[None]
        return model(
            input_ids=torch.tensor([tokens], device=model.device),
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
            return_dict=True,
            **({} if where is None else {"position_ids": where.long()}),
        )

    return run


def _is_eager(model: PreTrainedModel) -> bool:
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    return bool(implementation == "eager")
