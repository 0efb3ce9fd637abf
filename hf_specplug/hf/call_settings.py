"""The settings of a `generate` call, resolved in advance by the rules of transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from hf_specplug.errors import OptionError


class CallSettings:
    """The settings of one call: from its arguments, else its config, else the model's config.

    Each setting is an attribute. A setting that is set nowhere has transformers' default value,
    or None if it has no default.
    """

    def __init__(self, model: PreTrainedModel, kwargs: dict[str, Any]) -> None:
        self._model, self._kwargs = model, kwargs

    def __getattr__(self, name: str) -> Any:
        if name in self._kwargs:
            return self._kwargs[name]
        for config in (self._kwargs.get("generation_config"), self._model.generation_config):
            if (value := getattr(config, name, None)) is not None:
                return value
        return _DEFAULTS.get(name)


_DEFAULTS: dict[str, Any] = GenerationConfig()._get_default_generation_params()


def left_to_transformers(model: PreTrainedModel, kwargs: dict[str, Any]) -> str:
    """The reason to pass a call on to transformers unchanged; "" if there is none."""
    mode = GenerationConfig.get_generation_mode(
        CallSettings(model, kwargs),  # type: ignore[arg-type]
        kwargs.get("assistant_model"),
    )
    if mode == GenerationMode.ASSISTED_GENERATION:
        return "transformers' own assisted generation was asked for"
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"{mode.value} is not drafted"
    if kwargs.get("synced_gpus"):
        return "synced_gpus needs the same number of forward passes on every device"
    if kwargs.get("synced_gpus") is None and _is_shared(model):
        return "the processes that share this model must all make the same forward passes"
    return ""


def _is_shared(model: PreTrainedModel) -> bool:
    """Whether several processes compute one forward pass of the model together.

    ZeRO-3, FSDP and tensor parallelism do. Under DDP each process has its own copy.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    if torch.distributed.get_world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor  # not in every build of torch

    return bool(
        is_deepspeed_zero3_enabled()
        or (getattr(model, "tp_size", None) or 1) > 1
        or any(isinstance(weight, DTensor) for weight in model.parameters())
        or any(is_fsdp_managed_module(module) for module in model.modules())
        or any(type(module).__module__.startswith("deepspeed.") for module in model.modules())
    )


def ask_for_cache(model: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Request a KV cache for MPT, whose config leaves it out unless the caller asks for it."""
    use_cache = getattr(kwargs.get("generation_config"), "use_cache", None)
    if model.config.model_type == "mpt" and use_cache is None:
        kwargs.setdefault("use_cache", True)


def build_stop_strings(model: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Turn stop strings into a stopping criterion: `generate` passes no tokenizer to a callable.

    Raises:
        OptionError: the call has stop strings but no tokenizer.
    """
    strings = CallSettings(model, kwargs).stop_strings
    if strings is None:
        return
    tokenizer = kwargs.pop("tokenizer", None)
    if tokenizer is None:
        raise OptionError(
            "stop_strings were given (in the call or the generation config), but no tokenizer: "
            "pass generate(..., tokenizer=tokenizer)"
        )
    criteria = kwargs.get("stopping_criteria")
    kwargs["stopping_criteria"] = StoppingCriteriaList(
        [StopStringCriteria(stop_strings=strings, tokenizer=tokenizer), *(criteria or [])]
    )
    if getattr(kwargs.get("generation_config"), "stop_strings", None) is not None:
        kwargs["generation_config"] = copy.deepcopy(kwargs["generation_config"])
        kwargs["generation_config"].stop_strings = None
    if "stop_strings" in kwargs or model.generation_config.stop_strings is not None:
        kwargs["stop_strings"] = None
