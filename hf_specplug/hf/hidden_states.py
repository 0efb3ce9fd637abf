"""Hidden states: what a model has made of a text at one place inside, seen while it runs."""

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
"""The layer whose states the output embedding reads: the last one, normalised."""

_SAMPLED = 64  # rows of the output embedding that identify a model


class HiddenStateHook:
    """Within it, `states` is what the last forward pass of this thread had at a layer.

    Args:
        layer: of the decoder, from 0; or `LAST`.
        stop: end the forward pass there, with `Stop`.

    Attributes:
        states: [batch, n, width] on the model's device; None before a forward pass.

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
        """[n, width] of a text of the batch, or of its `last` tokens; None if none passed by."""
        return None if self.states is None else self.states[text, -last:]

    def __enter__(self) -> HiddenStateHook:
        self._thread = threading.get_ident()
        self.states = None  # where none pass by, those of another pass must not do
        if self.layer == LAST:
            self._hook = self._module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._hook = self._module.register_forward_hook(self._after)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        # torch leaves `kwargs` out where another thread's pass meets a hook that is half there
        if self._is_ours():
            self._seen(args[0] if args else next(iter(kwargs.values())))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_ours():
            self._seen(output[0] if isinstance(output, tuple) else output)

    def _is_ours(self) -> bool:
        """What is compiled runs for one call at a time, and cannot ask."""
        return torch.compiler.is_compiling() or threading.get_ident() == self._thread

    def _seen(self, states: torch.Tensor) -> None:
        self.states = states
        if self._stop:
            raise Stop


class Stop(Exception):
    """What was wanted of a forward pass has been seen."""


def _module(model: PreTrainedModel, layer: int) -> nn.Module:
    """What reads, or makes, the states of a layer."""
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
    """The same for models whose states mean the same, whatever their dtype; 32 hexadecimal digits.

    Models are told apart by type, layers and the signs of a part of the output embedding.
    """
    text = model.config.get_text_config(decoder=True)
    digest = xxhash.xxh3_128(f"{text.model_type} {text.num_hidden_layers}".encode())
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():
        signs = torch.signbit(weight.detach()[:_SAMPLED]).cpu().numpy()  # no rounding changes them
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(np.packbits(signs).tobytes())
    return str(digest.hexdigest())


def rows(states: torch.Tensor) -> NDArray[np.float32]:
    """float32, of the same shape."""
    found: NDArray[np.float32] = states.detach().to(torch.float32).cpu().numpy()
    return found
