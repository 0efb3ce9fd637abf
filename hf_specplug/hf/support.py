"""The mode that a model and a call allow: tree, chain if only a chain can be exact, else plain.

These checks use names and numbers only. A call that passes them is drafted only if drafts are shown
to be exact: see `hf_specplug.exactness`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation.configuration_utils import GenerationMode

from hf_specplug.hf.attention import implementation
from hf_specplug.hf.cache import FIXED, GROWING
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE, CallPlan
from hf_specplug.hf.positions import position_argument, slot_modules
from hf_specplug.hf.reach import reaches

SLOT_POSITIONS = frozenset({"gpt_neo"})
"""`model_type`s that take position ids but whose attention depends on the cache slot."""


RECURRENT = "the model has a recurrent state outside the cache, which cannot be rolled back"


def of_model(model: PreTrainedModel) -> CallPlan:
    """The mode that a model allows in any call."""
    config = model.config.get_text_config(decoder=True)
    name, attention = config.model_type, implementation(model)
    counts_slots = position_argument(model) is None and not slot_modules(model)
    reason = ""
    if counts_slots or name in SLOT_POSITIONS:
        reason = f"{name} takes positions from cache slots, so siblings would differ"
    elif getattr(config, "alibi", False):
        reason = f"{name} with ALiBi takes distances from cache slots"
    elif reaches(model.config) is None:
        reason = f"{name} has layers that look at neighbours instead of a mask"
    elif attention not in ("sdpa", "eager"):
        reason = f"attention {attention!r} takes no tree mask"
    return CallPlan(CHAIN, reason) if reason else CallPlan(TREE)


def of_call(call: Call) -> CallPlan:
    """The mode that one `generate` call allows on any engine, apart from the model's limits."""
    model, config, cache = call.model, call.config, call.cache
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return CallPlan(PLAIN, f"{mode.value} is not drafted")
    uses_cache = call.kwargs.get("use_cache", True)
    if uses_cache and cache is None and getattr(model, "_is_stateful", False):
        return CallPlan(PLAIN, RECURRENT)
    makes_cache = not model._supports_default_dynamic_cache()  # MiniMax at the prompt
    if not uses_cache or (cache is None and not makes_cache):
        return CallPlan(PLAIN, "drafts need a cache (use_cache=True)")
    if config.return_dict_in_generate:
        for wanted in ("output_attentions", "output_hidden_states"):
            if getattr(config, wanted):
                reason = f"{wanted} is per token, but drafts are verified together"
                return CallPlan(PLAIN, reason)
    start = call.input_ids.shape[1] if call.rows == 1 else 0  # rows differ in length
    if reason := _width_dependence(model, start, config.max_length):
        return CallPlan(PLAIN, reason)
    if _llama4_scale_start(model) < config.max_length:
        reason = "Llama 4 scales attention by cache slot in a text of this length"
        return CallPlan(CHAIN, reason)
    return CallPlan(TREE)


def left_to_compiled_generate(call: Call) -> bool:
    """Whether plain `generate` would compile the decoding of this call."""
    return bool(call.model._valid_auto_compile_criteria(dict(call.kwargs), call.config))


def has_static_shapes(call: Call) -> bool:
    """Whether a call can and should be decoded with static shapes and addresses.

    It should on CUDA, and on other devices if a static cache was requested. The generation config's
    `disable_compile` forbids it.
    """
    model, cache = call.model, call.cache
    text = model.config.get_text_config(decoder=True)
    quantizer = getattr(model, "hf_quantizer", None)
    kinds = {type(layer) for layer in getattr(cache, "layers", ())}
    fixed = kinds and kinds <= FIXED
    return bool(
        not call.config.disable_compile
        and (fixed or (is_accelerated(model) and kinds <= GROWING and type(cache) is DynamicCache))
        and not getattr(cache, "offloading", False)
        and not model.config.is_encoder_decoder
        and len(set(getattr(model, "hf_device_map", {}).values())) <= 1
        and (quantizer is None or quantizer.is_compileable)
        and model._can_compile_fullgraph
        and not getattr(text, "num_kv_shared_layers", 0)
        and is_generic(model)
        and not any(call.kwargs.get(key) is not None for key in PER_TOKEN)
    )


def device_of(model: PreTrainedModel) -> torch.device:
    """The device of a model's inputs.

    Offloaded weights are on the meta device until they are needed.
    """
    device: torch.device = model.device
    if device.type == "meta":
        hook = getattr(model, "_hf_hook", None)
        device = torch.device(getattr(hook, "execution_device", None) or "cpu")
    return device


def is_accelerated(model: PreTrainedModel) -> bool:
    """Whether forward passes can be captured as CUDA graphs."""
    return bool(model.device.type == "cuda")


PER_TOKEN = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Arguments of the forward pass that have one value per token."""


def is_generic(model: PreTrainedModel) -> bool:
    """Whether the model prepares its inputs in the same way at every step.

    Phi-3 differs only where longrope changes factors, and such calls run plainly. Whisper differs
    only in the positions of a padded text.
    """
    own = type(model).prepare_inputs_for_generation
    generic = own is GenerationMixin.prepare_inputs_for_generation
    generic = generic or model.config.model_type in ("phi3", "whisper")
    return generic and "prepare_inputs_for_generation" not in vars(model)


def _llama4_scale_start(model: PreTrainedModel) -> int:
    """The length in tokens from which layers without RoPE scale queries by slot; else 1 << 62."""
    config = model.config.get_text_config(decoder=True)
    if config.model_type == "llama4_text" and config.attn_temperature_tuning:
        return int(config.floor_scale) - 1
    return 1 << 62


def _rope_types(config: Any) -> set[str]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return {str(part.get("rope_type", "default")) for part in [rope, *nested]}


def _width_dependence(model: PreTrainedModel, start: int, end: int) -> str:
    """Why a forward pass depends on its width while the text grows; "" if it does not.

    RoPE factors depend on the largest position in a forward pass. Doge's attention depends on its
    last slot.

    Args:
        start: length of the prompt in tokens.
        end: maximum length of the text in tokens.
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
