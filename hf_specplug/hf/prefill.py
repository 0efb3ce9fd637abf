"""Prefill: the prompt runs as in plain `generate`, and its state is kept for the next token."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from hf_specplug.hf.support import PER_TOKEN


@dataclass(frozen=True, slots=True)
class Prompt:
    """The state that plain `generate` has after prefill, before the next token.

    Attributes:
        input_ids: int64[1, n], the prompt.
        kwargs: arguments from which the model prepares its inputs for the next token, including
            the filled KV cache.
        per_token: the dimension that grows, for each argument with one entry per token. Generated
            tokens repeat the last entry.
    """

    input_ids: torch.Tensor
    kwargs: dict[str, Any]
    per_token: dict[str, int]

    def copied(self) -> Prompt:
        """A copy with its own caches, tensors and encoder outputs.

        A model may change any of them in place: Moonshine adds positions to its encoder's states.
        """
        kwargs = {key: _copied(value) for key, value in self.kwargs.items()}
        return Prompt(self.input_ids, kwargs, self.per_token)


def prefilled(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    config: GenerationConfig,
    kwargs: dict[str, Any],
) -> tuple[Any, Prompt]:
    """Run a prompt as plain `generate` does; returns (the model's outputs, the state after it)."""
    outputs = model._prefill(input_ids, config, kwargs, is_first_iteration=not config.is_assistant)
    before = {key: tuple(value.shape) for key, value in kwargs.items() if _is_tensor(value)}
    encoder_decoder = bool(model.config.is_encoder_decoder)
    kwargs = next_kwargs(model, outputs, kwargs)
    prefix = "decoder_" if encoder_decoder else ""
    apart = {f"{prefix}{name}" for name in ("input_ids", "attention_mask", "position_ids")}
    per_token = {key: kwargs[key].ndim - 1 for key in PER_TOKEN if _is_tensor(kwargs.get(key))}
    for key in before.keys() - apart:
        dim = _grown(before[key], tuple(kwargs[key].shape) if _is_tensor(kwargs.get(key)) else ())
        if dim is not None:
            per_token[key] = dim
    return outputs, Prompt(input_ids, kwargs, per_token)


def next_kwargs(model: PreTrainedModel, outputs: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments for the next token, updated after a forward pass."""
    encoder_decoder = bool(model.config.is_encoder_decoder)
    updated: dict[str, Any] = model._update_model_kwargs_for_generation(
        outputs, kwargs, is_encoder_decoder=encoder_decoder
    )
    return updated


def optimized_for_decode(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Context manager that sets up forward passes as `generate` sets up its decoding."""
    context: AbstractContextManager[Any] = model._optimize_model_for_decode()
    return context


METHODS = frozenset(
    {"forward", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation", "_prefill"}
)
"""The model methods with which `generate` and the verification of drafts compute a token."""


def _copied(value: Any) -> Any:
    """A copy of what a model may change; embeddings of the caller's need not be graph leaves."""
    if _is_tensor(value):
        return value.detach().clone()
    changeable = isinstance(value, dict) or hasattr(value, "get_seq_length")
    return copy.deepcopy(value) if changeable else value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _grown(before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """The dimension that grew by one if no other dimension changed, else None."""
    if len(before) != len(after):
        return None
    longer = [new - old for old, new in zip(before, after, strict=True)]
    return longer.index(1) if longer.count(1) == 1 and sum(map(abs, longer)) == 1 else None
