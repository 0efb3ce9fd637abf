"""Linear layers whose result for a token depends on the tokens beside it.

Layers that quantize activations may take one scale for all rows of a forward pass: what such a
layer makes of a token is then another thing in a tree than alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

_LOUD = 64.0
_SAME = 1e-4  # in standard deviations: the shapes are the same, so nothing rounds differently


@contextmanager
def row_dependent(model: nn.Module) -> Iterator[list[str]]:
    """Look at the forward passes inside; in the end the list has the layers' types and names.

    Each layer that is not torch's own is given what it was given then, and the same with a louder
    last token: its first token must come out the same.
    """
    given: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    thread = threading.get_ident()

    def keep(name: str, layer: nn.Module, args: Any) -> None:
        if threading.get_ident() != thread:
            return
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim > 1:
            given[name] = layer, args[0].detach()

    hooks = [
        layer.register_forward_pre_hook(partial(keep, name))
        for name, layer in model.named_modules()
        if _is_linear(layer)
    ]
    found: list[str] = []
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    for name, (layer, x) in given.items():
        if _depends(layer, x):
            found.append(f"{type(layer).__name__} {name}")


def _is_linear(layer: nn.Module) -> bool:
    """Whether it should treat each row by itself, and is not known to do so."""
    linear = hasattr(layer, "in_features") and hasattr(layer, "out_features")
    weight = getattr(layer, "weight", None)
    usual = isinstance(weight, nn.Parameter) and type(weight.data) is torch.Tensor
    return linear and not (type(layer) is nn.Linear and usual)


@torch.no_grad()
def _depends(layer: nn.Module, x: torch.Tensor) -> bool:
    if x.shape[-2] < 2 or not x.is_floating_point():
        return False
    loud = x.clone()
    loud[..., -1, :] *= _LOUD
    try:
        one, other = layer(x)[..., 0, :].float(), layer(loud)[..., 0, :].float()
    except Exception:  # it is called in a way of its own: what it does shows in the logits
        return False
    return bool((one - other).abs().max() > _SAME * one.std().clamp_min(1e-9))
