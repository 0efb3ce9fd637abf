"""Hidden states of one layer, captured by a hook during the forward pass."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hf_specplug.errors import OptionError

LAST = -1
"""The layer index of the states that the output embedding reads: the last layer, normalized."""

_SAMPLED = 64  # rows of the output embedding that identify a model


class HiddenStateHook:
    """Context manager that captures the hidden states of one layer, in this thread only.

    Args:
        layer: index of a decoder layer, from 0; or `LAST`.
        stop: end the forward pass at this layer by raising `Stop`.

    Attributes:
        states: [batch, n, width] of the last forward pass, on the model's device; None before it.

    Raises:
        OptionError: the model has no such layer.

    Example:
        >>> with HiddenStateHook(model) as watch:  # doctest: +SKIP
        ...     model(ids)
        >>> watch.states.shape
        torch.Size([1, 12, 512])
    """

    def __init__(self, model: PreTrainedModel, layer: int = LAST, stop: bool = False) -> None:
        self.layer = layer
        self.states: torch.Tensor | None = None
        self._module = _module(model, layer)
        self._stop = stop

    def of(self, text: int, last: int = 0) -> torch.Tensor | None:
        """The states of one text of the batch, [n, width]; None if none were captured.

        Args:
            text: index of the text in the batch.
            last: number of tokens at the end of the text; 0 for all.
        """
        return None if self.states is None else self.states[text, -last:]

    def __enter__(self) -> HiddenStateHook:
        self._thread = threading.get_ident()
        # a pass that captures nothing must not leave the states of an earlier one
        self.states = None
        if self.layer == LAST:
            self._hook = self._module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._hook = self._module.register_forward_hook(self._after)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        # torch omits `kwargs` if another thread's pass meets a hook that is only half registered
        if self._is_ours():
            self._capture(args[0] if args else next(iter(kwargs.values())))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_ours():
            self._capture(output[0] if isinstance(output, tuple) else output)

    def _is_ours(self) -> bool:
        """Whether the forward pass belongs to this thread.

        Compiled code runs for one call at a time and cannot ask for its thread.
        """
        return torch.compiler.is_compiling() or threading.get_ident() == self._thread

    def _capture(self, states: torch.Tensor) -> None:
        self.states = states
        if self._stop:
            raise Stop


class Stop(Exception):
    """Raised to end a forward pass once the wanted hidden states are captured."""


def _module(model: PreTrainedModel, layer: int) -> nn.Module:
    """The module that reads (`LAST`) or computes the hidden states of a layer."""
    if layer == LAST:
        head = model.get_output_embeddings()
        if head is None:
            raise OptionError(f"{type(model).__name__} has no output embedding to take states from")
        return head  # type: ignore[no-any-return]
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            if 0 <= layer < count:
                return module[layer]
            raise OptionError(
                f"layer {layer}: the model has 0 to {count - 1}, and {LAST}, the last"
            )
    raise OptionError(f"the layers of {type(model).__name__} are not found; take the last, {LAST}")


def signature(model: PreTrainedModel) -> str:
    """A hash that models with interchangeable hidden states share, whatever their dtype.

    It covers the model type, the number of layers, and the shape and a part of the signs of the
    output embedding.

    Returns:
        32 hexadecimal digits.
    """
    text = model.config.get_text_config(decoder=True)
    digest = xxhash.xxh3_128(f"{text.model_type} {text.num_hidden_layers}".encode())
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():
        signs = torch.signbit(weight.detach()[:_SAMPLED]).cpu().numpy()  # rounding keeps signs
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(np.packbits(signs).tobytes())
    return str(digest.hexdigest())


def rows(states: torch.Tensor) -> NDArray[np.float32]:
    """Copy states to the CPU as float32, with the same shape."""
    array: NDArray[np.float32] = states.detach().to(torch.float32).cpu().numpy()
    return array
