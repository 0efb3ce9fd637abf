"""What a model and a call allow: a tree, a chain where only that can be right, else plain.

These are the gates that go by names and numbers. What passes them is only drafted if it is shown
to be right: see `evidence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.generation.configuration_utils import GenerationMode

from hf_specplug.hf.attention import NAME as FOLDED
from hf_specplug.hf.cache import CHAIN, PLAIN, TREE, rollback
from hf_specplug.hf.positions import position_argument, slot_modules
from hf_specplug.hf.reach import reaches

SLOT_POSITIONS = frozenset({"gpt_neo"})
"""`model_type`s that take position ids, but whose attention goes by the slot in the cache."""


RECURRENT = "the model has a recurrent state that cannot be rolled back"


@dataclass(frozen=True, slots=True)
class Support:
    """How a call is run: "tree", "chain" or "plain", and why it is not a tree ("" if it is)."""

    mode: str
    reason: str = ""


def of_model(model: PreTrainedModel) -> Support:
    """What a model may be able to check, whatever the call."""
    config = model.config.get_text_config(decoder=True)
    name = config.model_type
    counts_slots = position_argument(model) is None and not slot_modules(model)
    if counts_slots or name in SLOT_POSITIONS:
        return Support(CHAIN, f"{name} takes positions from cache slots, so siblings would differ")
    if getattr(config, "alibi", False):
        return Support(CHAIN, f"{name} with ALiBi takes distances from cache slots")
    if reaches(model.config) is None:
        return Support(CHAIN, f"{name} has layers that look at neighbours instead of a mask")
    if config._attn_implementation not in ("sdpa", FOLDED, "eager"):
        return Support(CHAIN, f"attention {config._attn_implementation!r} takes no tree mask")
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
    if cache is None and getattr(model, "_is_stateful", False):
        return Support(PLAIN, RECURRENT)
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
    if turn := _turn(model, input_ids.shape[1], config.max_length):
        return Support(PLAIN, turn)
    if static:
        return Support(TREE)
    return Support(*rollback(cache))


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
        and (given or (is_accelerated(model) and kinds <= _GROWING and type(cache) is DynamicCache))
        and not getattr(cache, "offloading", False)
        and not model.config.is_encoder_decoder
        and len(set(getattr(model, "hf_device_map", {}).values())) <= 1
        and (quantizer is None or quantizer.is_compileable)
        and model._can_compile_fullgraph
        and not getattr(text, "num_kv_shared_layers", 0)
        and is_generic(model)
        and not any(model_kwargs.get(key) is not None for key in PER_TOKEN)
    )


_GROWING = {DynamicLayer, DynamicSlidingWindowLayer}


def device_of(model: PreTrainedModel) -> torch.device:
    """Where a model's inputs go; offloaded weights themselves are nowhere until they are needed."""
    device: torch.device = model.device
    if device.type == "meta":
        hook = getattr(model, "_hf_hook", None)
        device = torch.device(getattr(hook, "execution_device", None) or "cpu")
    return device


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
    generic = generic or model.config.model_type == "phi3"
    return generic and "prepare_inputs_for_generation" not in vars(model)


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


def _turn(model: PreTrainedModel, start: int, end: int) -> str:
    """Why a forward pass depends on its width in a text of this length; "" if it does not.

    The factors of RoPE follow the largest position in a pass; Doge's attention, its last slot.
    """
    config = model.config.get_text_config(decoder=True)
    if end > (limit := getattr(config, "keep_window_size", None) or end):
        return f"the text may cross {limit} tokens, from where attention drops keys"
    types = _rope_types(config)
    if end > (limit := getattr(config, "index_topk", None) or end):
        return f"the text may cross {limit} tokens, from where an index chooses among keys"
    if "dynamic" in types and end > config.max_position_embeddings:
        limit = config.max_position_embeddings
        return f"the text may cross {limit} tokens, where dynamic RoPE scaling sets in"
    if "longrope" in types:
        limit = config.rope_parameters.get("original_max_position_embeddings")
        limit = int(limit or getattr(config, "original_max_position_embeddings", 0))
        if limit and start <= limit < end:
            return f"the text may cross {limit} tokens, where longrope changes factors"
    return ""
