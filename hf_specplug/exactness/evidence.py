"""Whether drafts are exact on a model as it is now: tried, and remembered with the model.

A family that the tests hold to be exact is believed, as long as the model is what the tests had:
classes of torch and transformers, nothing patched in. Anything else (another family, adapters,
quantized layers, hooks, code of a repository) is tried: the rows of a small tree, and of a chain,
beside the rows that plain decoding computes one by one, through all that `generate` prepares.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from hf_specplug import forking
from hf_specplug.exactness import trial
from hf_specplug.hf import suppressed
from hf_specplug.hf.cache import PLAIN, TREE
from hf_specplug.hf.reach import masks_needed
from hf_specplug.hf.support import Support, device_of
from hf_specplug.verify.packed import KEY as PACKED

PROVEN = frozenset(
    """
    codegen cohere2 deepseek_v3 falcon gemma gemma2 gemma3_text gpt2 gpt_bigcode gpt_neox
    gpt_oss gptj llama llama4_text mistral mixtral olmo2 opt phi3 qwen2 qwen2_moe qwen2_vl
    qwen3 qwen3_moe smollm3 stablelm starcoder2 whisper
    """.split()  # noqa: SIM905
)
"""`model_type`s of whole models whose trees the identity tests hold, in transformers 5.23."""

_TEXT = frozenset(
    {"attention_mask", "logits_to_keep", "past_key_values", "position_ids", "use_cache"}
)
"""What `generate` makes by itself of a text for a decoder."""

_known: WeakKeyDictionary[nn.Module, dict[Any, Support]] = WeakKeyDictionary()


class _Turn:
    """One trial at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        forking.register(self)

    def after_fork(self) -> None:
        """Nothing but the lock was of other threads."""


_turn = _Turn()


def shown(
    model: PreTrainedModel,
    claim: Support,
    input_ids: torch.Tensor,
    config: GenerationConfig,
    model_kwargs: Mapping[str, Any],
) -> Support:
    """What of a claim is right for this model and this kind of call.

    Args:
        claim: tree or chain, as the gates by name allow.
        input_ids, config, model_kwargs: the call, as `generate` prepared it.

    Returns:
        The claim; or, where that is not exact, a chain or plain, with the reason.
    """
    given = frozenset(key for key, value in model_kwargs.items() if value is not None)
    if any(inspect.isgenerator(value) for value in model_kwargs.values()):
        return Support(PLAIN, "its inputs come one by one, as the text grows")
    if _adapts_the_last(model):
        return Support(PLAIN, "aLoRA adapts the last tokens of a forward pass, however many it has")
    live = fingerprint(model)
    padded = not _all_ones(model_kwargs.get("attention_mask"))
    masks = tuple(masks_needed(model.config, config.max_length)) if claim.mode == TREE else ()
    key = (claim, live, given, padded, masks)
    with _turn.lock:
        known = _known.setdefault(model, {})
        if key in known:
            return known[key]
        found = claim
        if not _is_proven(model, claim, given):
            with unchanged(model):
                if given <= _TEXT and not model.config.is_encoder_decoder:
                    found = _of_text(model, claim, padded, config.max_length)
                else:
                    found = trial.run_trial(model, claim, input_ids, config, dict(model_kwargs))
        if model.training and found != claim:
            hint = f"{found.reason} (in train mode: is it meant? model.eval())"
            found = replace(found, reason=hint)
        # among several threads it may have been another one that drew them
        if trial.RANDOM not in found.reason or threading.active_count() == 1:
            known[key] = found
        return found


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards modules have the attributes and buffers that they had.

    Some keep what belongs to a text: Qwen-VL models its positions, RoPE its scale.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            _restore(vars(module), attributes)
            _restore(module._buffers, buffers)


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    for key in now.keys() - before.keys() - _METHODS - {PACKED}:
        del now[key]
    for key in before.keys() - {PACKED}:
        if now.get(key) is not before[key]:
            now[key] = before[key]


def _is_proven(model: PreTrainedModel, claim: Support, given: frozenset[str]) -> bool:
    """Whether the tests have shown it for such models and calls."""
    return (
        claim.mode == TREE
        and model.config.model_type in PROVEN
        and given <= set(inspect.signature(model.forward).parameters) | _TEXT
        and is_stock(model)
    )


def _of_text(model: PreTrainedModel, claim: Support, padded: bool, longest: int) -> Support:
    """Try it on a short text, with padding on its left or without, as if it were to get long."""
    found = [Support(PLAIN, "generate did not come to decode")]

    def run(model: PreTrainedModel, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
        config = rest.pop("generation_config")
        config.max_length = longest
        kwargs = {key: value for key, value in rest.items() if key not in _NOT_FOR_THE_MODEL}
        found[0] = trial.run_trial(model, claim, input_ids, config, kwargs)
        return input_ids

    ids = _text(model)
    mask = torch.ones_like(ids)
    mask[:, : 3 * padded] = 0
    try:
        type(model).generate(
            model,
            ids,
            attention_mask=mask,
            max_new_tokens=trial.LENGTH,
            use_cache=True,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            custom_generate=run,
        )
    except Exception as problem:
        return Support(PLAIN, f"a trial failed: {type(problem).__name__}: {problem}")
    return found[0]


_NOT_FOR_THE_MODEL = ("logits_processor", "stopping_criteria", "inputs_tensor", "streamer")


def _text(model: PreTrainedModel, length: int = 12) -> torch.Tensor:
    """int64[1, length]: any text that has no tokens of a special meaning."""
    config = model.config.get_text_config(decoder=True)
    special: set[int | None] = set(suppressed.tokens(model))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        special |= set(value) if isinstance(value, list) else {value}
    usual = [token for token in range(min(config.vocab_size, 512)) if token not in special]
    ids = [usual[(7 * place + 3) % len(usual)] for place in range(length)]
    return torch.tensor([ids], device=device_of(model))


def _all_ones(mask: Any) -> bool:
    return not isinstance(mask, torch.Tensor) or mask.ndim != 2 or bool((mask == 1).all())


def is_stock(model: nn.Module) -> bool:
    """Whether a model is of classes of torch and transformers, in eval mode, nothing patched in."""
    methods = (getattr(type(model), name, None) for name in _METHODS)
    return all(_is_home(method) for method in methods if method is not None) and not any(
        own.keys() & _METHODS or module.training or foreign(module) or _hooks(own)
        for module in model.modules()
        for own in (vars(module),)
    )


def foreign(module: nn.Module) -> bool:
    """Whether a module, its forward or how one of its own weights is kept comes from elsewhere."""
    kind = _kind(module)
    plain = all(w is None or type(w.data) is torch.Tensor for w in module._parameters.values())
    return not (plain and _is_home(kind) and _is_home(kind.forward))


def _is_home(thing: Any) -> bool:
    """Whether a class or function is of torch or transformers, and no quantizer's."""
    top, inner = [*thing.__module__.split("."), ""][:2]
    if top == "torch":
        return inner in ("nn", "utils")  # also what decorates methods
    return top == "transformers" and inner not in ("integrations", "quantizers")


_METHODS = frozenset(
    {"forward", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation", "_prefill"}
)
_OURS = "hf_specplug."
_NO_SWITCHES = frozenset(vars(nn.Module())) | {PACKED, "forward"}


def fingerprint(model: nn.Module) -> int:
    """Another number once anything may make the rows of a forward pass depend on each other.

    Classes, modes, hooks, replaced methods, and all switches below the root (adapters on or off);
    not the values of weights.
    """
    parts: list[Any] = [_qualified(vars(model).get(name)) for name in sorted(_METHODS)]
    for name, module in model.named_modules():
        own = vars(module)
        kind = _kind(module)
        parts += (name, kind, kind.forward, module.training)
        if "forward" in own:
            parts.append(_qualified(own["forward"]))
        if own["_forward_pre_hooks"] or own["_forward_hooks"]:
            parts += [type(hook) for hook in _hooks(own)]
        for key, weight in module._parameters.items():
            if weight is not None:
                parts += (key, type(weight.data), weight.dtype)
        if name:
            parts += [(key, _switch(own[key])) for key in own.keys() - _NO_SWITCHES]
    config: Any = model.config
    parts.append(config.get_text_config(decoder=True)._attn_implementation)
    return hash(tuple(parts))


def _hooks(own: Mapping[str, Any]) -> list[Any]:
    """The hooks of a module that are not of this package, for the time of another call."""
    every = [*own["_forward_pre_hooks"].values(), *own["_forward_hooks"].values()]
    return [hook for hook in every if not _module(hook).startswith(_OURS)]


def _module(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


def _adapts_the_last(model: nn.Module) -> bool:
    """Whether PEFT has switched on an aLoRA adapter for this call, which it does by hooks."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    offsets = (getattr(hook, "keywords", {}).get("alora_offsets") for hook in hooks)
    return any(offset is not None for row in offsets if row for offset in row)


def _kind(module: nn.Module) -> type[nn.Module]:
    """A module's class, as it is while no call has put packed weights in."""
    return nn.Linear if type(module).__module__.startswith(_OURS) else type(module)


def _qualified(method: Any) -> str:
    return f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', type(method))}"


def _switch(value: Any) -> Any:
    """What of an attribute can be a switch: names, flags and lists of names; else its type."""
    if value is None or isinstance(value, torch.Tensor):
        return None  # what is remembered of a text comes and goes
    if isinstance(value, bool | str | torch.dtype):
        return value
    if isinstance(value, list | tuple | set) and len(value) <= 64:
        return tuple(part for part in value if isinstance(part, bool | str))
    if isinstance(value, dict) and len(value) <= 64:
        return tuple(str(key) for key in value)
    return type(value)
