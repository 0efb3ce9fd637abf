"""The settings of torch.compile for a call."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch._dynamo
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

RECOMPILES = 64
"""How many kinds of input one function may be compiled for; torch's own limit is 8."""


def many_recompiles(**settings: Any) -> AbstractContextManager[Any]:
    """Context manager in which one function may be compiled for trees, chains and prompts.

    Beyond torch's limit, a forward pass runs uncompiled or, with `fullgraph`, raises an error.

    Args:
        settings: further settings of `torch._dynamo.config`.
    """
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    every = {limit: max(RECOMPILES, getattr(config, limit)), **settings}
    patch: AbstractContextManager[Any] = config.patch(every)
    return patch


def compile_config(model: PreTrainedModel, config: GenerationConfig) -> CompileConfig | None:
    """The user's compile config, with one shape at a time instead of dynamic shapes.

    Returns:
        None if the user did not ask for compilation, or not for the CPU that the model is on.
    """
    requested = config.compile_config
    if requested is None or (model.device.type == "cpu" and not requested._compile_all_devices):
        return None
    static = CompileConfig(**{**requested.to_dict(), "dynamic": False})
    static._compile_all_devices = requested._compile_all_devices
    return static


def compiled_everywhere(config: CompileConfig) -> CompileConfig:
    """Let a config compile on a CPU too, where transformers does not compile by default."""
    config._compile_all_devices = True
    return config
