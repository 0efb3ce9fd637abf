"""Whether drafts are exact on a model in its present state; results are cached for each model.

A family that the identity tests cover is trusted as long as the model is like the tested ones: only
classes of torch and transformers, nothing patched in. Anything else (another family, adapters,
quantized layers, hooks, code from a repository) gets a trial: the logits of a small tree and of a
chain are compared with those that plain decoding computes token by token, with everything that
`generate` prepares.
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
from hf_specplug.exactness.fingerprint import fingerprint, has_active_alora, is_stock
from hf_specplug.hf import suppressed
from hf_specplug.hf.call import NOT_FOR_THE_MODEL, OF_A_TEXT, Call
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
"""`model_type`s of whole models whose trees pass the identity tests, with transformers 5.23."""


class _Trials:
    """One trial at a time: each restores the model and the random generators of the process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        forking.register(self)

    def after_fork(self) -> None:
        """Do nothing: only the lock belonged to other threads."""


_trials = _Trials()
_results: WeakKeyDictionary[nn.Module, dict[Any, tuple[str, str]]] = WeakKeyDictionary()
"""(mode, reason) for each model and kind of call."""


def shown(call: Call, plan: CallPlan) -> CallPlan:
    """Limit a plan to what is shown to be exact for this model and this kind of call.

    Args:
        call: as `generate` prepared it.
        plan: tree or chain, as the checks by name allow.

    Returns:
        The plan if it is exact; otherwise chain or plain, with the reason.
    """
    model = call.model
    arguments = frozenset(key for key, value in call.kwargs.items() if value is not None)
    if any(inspect.isgenerator(value) for value in call.kwargs.values()):
        return plan.limited(PLAIN, "its inputs come one by one, as the text grows")
    if has_active_alora(model):
        reason = "aLoRA adapts the last tokens of a forward pass, however many it has"
        return plan.limited(PLAIN, reason)
    state = fingerprint(model)
    padded = not _all_ones(call.kwargs.get("attention_mask"))
    masks = tuple(masks_needed(model.config, call.config.max_length)) if plan.mode == TREE else ()
    key = (plan.mode, plan.reason, state, arguments, padded, masks, call.rows > 1)
    with _trials.lock:
        known = _results.setdefault(model, {})
        if key in known:
            return plan.limited(*known[key])
        found = plan
        if not _is_proven(model, plan, arguments):
            with unchanged(model):
                if arguments <= OF_A_TEXT and not model.config.is_encoder_decoder:
                    found = _text_trial(model, plan, padded, call)
                else:
                    found = trial.run_trial(call, plan)
        if model.training and found != plan:
            hint = f"{found.reason} (in train mode: is it meant? model.eval())"
            found = replace(found, reason=hint)
        # if there are other threads, one of them may have drawn the numbers
        if trial.RANDOM not in found.reason or threading.active_count() == 1:
            known[key] = found.mode, found.reason
        return found


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Context manager that restores the attributes and buffers of all modules on exit.

    Some modules keep state of a text: Qwen-VL models its positions, RoPE its scale.
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


def _is_proven(model: PreTrainedModel, plan: CallPlan, arguments: frozenset[str]) -> bool:
    """Whether the identity tests cover such models and calls."""
    return (
        plan.mode == TREE
        and model.config.model_type in PROVEN
        and arguments <= set(inspect.signature(model.forward).parameters) | OF_A_TEXT
        and is_stock(model)
    )


def _text_trial(model: PreTrainedModel, plan: CallPlan, padded: bool, call: Call) -> CallPlan:
    """Run a trial on a short text; for a batch, on two rows of it.

    Args:
        padded: whether the text has padding on its left, in a batch that of the first row.
        call: the real call. The trial uses the settings of a text that may grow to its length.
    """
    result = [plan.limited(PLAIN, "generate did not come to decode")]

    def run(model: PreTrainedModel, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
        config = rest.pop("generation_config")
        config.max_length = call.config.max_length
        kwargs = {key: value for key, value in rest.items() if key not in NOT_FOR_THE_MODEL}
        result[0] = trial.run_trial(Call(model, input_ids, config, kwargs), plan)
        return input_ids

    ids = _trial_text(model).expand(min(call.rows, 2), -1)
    mask = torch.ones_like(ids)
    mask[0, : 3 * padded] = 0
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
    except Exception as error:
        return plan.limited(PLAIN, f"a trial failed: {type(error).__name__}: {error}")
    return result[0]


def _trial_text(model: PreTrainedModel, length: int = 12) -> torch.Tensor:
    """int64[1, length], an arbitrary text without special tokens."""
    config = model.config.get_text_config(decoder=True)
    special: set[int | None] = set(suppressed.tokens(model))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        special |= set(value) if isinstance(value, list) else {value}
    ordinary = [token for token in range(min(config.vocab_size, 512)) if token not in special]
    ids = [ordinary[(7 * place + 3) % len(ordinary)] for place in range(length)]
    return torch.tensor([ids], device=device_of(model))


def _all_ones(mask: Any) -> bool:
    """Whether an attention mask hides no token; also True if it is not a 2-D tensor."""
    return not isinstance(mask, torch.Tensor) or mask.ndim != 2 or bool((mask == 1).all())
