"""What a call asks of torch.compile."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch._dynamo
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

RECOMPILES = 64
"""Kinds of input for which one function may be compiled; torch's own limit is 8."""


def many_recompiles(**settings: Any) -> AbstractContextManager[Any]:
    """Within it, torch.compile puts up with trees, chains and prompts as inputs of one function.

    Past its limit, a forward pass runs uncompiled or, with `fullgraph`, raises.

    Args:
        settings: further ones of `torch._dynamo.config`.
    """
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    every = {limit: max(RECOMPILES, getattr(config, limit)), **settings}
    patch: AbstractContextManager[Any] = config.patch(every)
    return patch


def compile_config(model: PreTrainedModel, config: GenerationConfig) -> CompileConfig | None:
    """How to compile, if the user asked for it: one shape at a time instead of dynamic shapes."""
    asked = config.compile_config
    if asked is None or (model.device.type == "cpu" and not asked._compile_all_devices):
        return None
    one = CompileConfig(**{**asked.to_dict(), "dynamic": False})
    one._compile_all_devices = asked._compile_all_devices
    return one


def compiled_everywhere(config: CompileConfig) -> CompileConfig:
    """The same, on a CPU too, where transformers leaves it out."""
    config._compile_all_devices = True
    return config
