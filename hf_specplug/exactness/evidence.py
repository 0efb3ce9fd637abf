"""Whether drafts are exact on a model as it is now: tried, and remembered with the model.

A family that the tests hold to be exact is believed, as long as the model is what the tests had:
classes of torch and transformers, nothing patched in. Anything else (another family, adapters,
quantized layers, hooks, code of a repository) is tried: the rows of a small tree, and of a chain,
beside the rows that plain decoding computes one by one, through all that `generate` prepares.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_specplug import forking
from hf_specplug.exactness import trial
from hf_specplug.exactness.fingerprint import adapts_the_last, fingerprint, is_stock
from hf_specplug.hf import suppressed
from hf_specplug.hf.call import NOT_FOR_THE_MODEL, Call
from hf_specplug.hf.plan import PLAIN, TREE, CallPlan
from hf_specplug.hf.prefill import METHODS
from hf_specplug.hf.reach import masks_needed
from hf_specplug.hf.support import device_of
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


class _Trials:
    """One trial at a time: it sets back the model, and the random generators of the process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        forking.register(self)

    def after_fork(self) -> None:
        """Only the lock belonged to other threads."""


_trials = _Trials()
_found: WeakKeyDictionary[nn.Module, dict[Any, tuple[str, str]]] = WeakKeyDictionary()
"""By model and kind of call: (mode, reason)."""


def shown(call: Call, plan: CallPlan) -> CallPlan:
    """The part of a plan that is shown to be exact for this model and this kind of call.

    Args:
        plan: tree or chain, as the gates by name allow.

    Returns:
        The plan; where that is not exact, a chain or plain, with the reason.
    """
    model = call.model
    given = frozenset(key for key, value in call.kwargs.items() if value is not None)
    if any(inspect.isgenerator(value) for value in call.kwargs.values()):
        return plan.limited(PLAIN, "its inputs come one by one, as the text grows")
    if adapts_the_last(model):
        reason = "aLoRA adapts the last tokens of a forward pass, however many it has"
        return plan.limited(PLAIN, reason)
    live = fingerprint(model)
    padded = not _all_ones(call.kwargs.get("attention_mask"))
    masks = tuple(masks_needed(model.config, call.config.max_length)) if plan.mode == TREE else ()
    key = (plan.mode, plan.reason, live, given, padded, masks)
    with _trials.lock:
        known = _found.setdefault(model, {})
        if key in known:
            return plan.limited(*known[key])
        found = plan
        if not _is_proven(model, plan, given):
            with unchanged(model):
                if given <= _TEXT and not model.config.is_encoder_decoder:
                    found = _of_text(model, plan, padded, call.config.max_length)
                else:
                    found = trial.run_trial(call, plan)
        if model.training and found != plan:
            hint = f"{found.reason} (in train mode: is it meant? model.eval())"
            found = replace(found, reason=hint)
        # among several threads it may have been another one that drew them
        if trial.RANDOM not in found.reason or threading.active_count() == 1:
            known[key] = found.mode, found.reason
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
    for key in now.keys() - before.keys() - METHODS - {PACKED}:
        del now[key]
    for key in before.keys() - {PACKED}:
        if now.get(key) is not before[key]:
            now[key] = before[key]


def _is_proven(model: PreTrainedModel, plan: CallPlan, given: frozenset[str]) -> bool:
    """Whether the tests have shown it for such models and calls."""
    return (
        plan.mode == TREE
        and model.config.model_type in PROVEN
        and given <= set(inspect.signature(model.forward).parameters) | _TEXT
        and is_stock(model)
    )


def _of_text(model: PreTrainedModel, plan: CallPlan, padded: bool, longest: int) -> CallPlan:
    """Try it on a short text, with padding on its left or without, as if it were to get long."""
    found = [plan.limited(PLAIN, "generate did not come to decode")]

    def run(model: PreTrainedModel, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
        config = rest.pop("generation_config")
        config.max_length = longest
        kwargs = {key: value for key, value in rest.items() if key not in NOT_FOR_THE_MODEL}
        found[0] = trial.run_trial(Call(model, input_ids, config, kwargs), plan)
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
        return plan.limited(PLAIN, f"a trial failed: {type(problem).__name__}: {problem}")
    return found[0]


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
