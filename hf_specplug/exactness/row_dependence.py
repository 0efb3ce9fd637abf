"""Linear layers whose result for a token depends on the other tokens of the forward pass.

Layers that quantize activations may use one scale for all rows of a forward pass. The result for a
token is then different in a tree than alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

_GAIN = 64.0  # factor by which the last token is amplified
_TOLERANCE = 1e-4  # standard deviations; the shapes are equal, so nothing rounds differently


@contextmanager
def row_dependent(model: nn.Module) -> Iterator[list[str]]:
    """Context manager that checks the layers of the forward passes inside, on exit.

    Each linear layer that is not torch's own runs again on its last input, and on the same input
    with an amplified last token. The result of the first token must be the same.

    Yields:
        A list that receives "type name" of each layer that fails.
    """
    inputs: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    thread = threading.get_ident()

    def keep(name: str, layer: nn.Module, args: Any) -> None:
        if threading.get_ident() != thread:
            return
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim > 1:
            inputs[name] = layer, args[0].detach()

    hooks = [
        layer.register_forward_pre_hook(partial(keep, name))
        for name, layer in model.named_modules()
        if _needs_check(layer)
    ]
    found: list[str] = []
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    for name, (layer, x) in inputs.items():
        if _depends(layer, x):
            found.append(f"{type(layer).__name__} {name}")


def _needs_check(layer: nn.Module) -> bool:
    """Whether a layer is linear, but not known to treat each row independently."""
    linear = hasattr(layer, "in_features") and hasattr(layer, "out_features")
    weight = getattr(layer, "weight", None)
    plain = isinstance(weight, nn.Parameter) and type(weight.data) is torch.Tensor
    return linear and not (type(layer) is nn.Linear and plain)


@torch.no_grad()
def _depends(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether the first row of `layer(x)`, x: [..., T, width], depends on the last row of x."""
    if x.shape[-2] < 2 or not x.is_floating_point():
        return False
    amplified = x.clone()
    amplified[..., -1, :] *= _GAIN
    try:
        one, other = layer(x)[..., 0, :].float(), layer(amplified)[..., 0, :].float()
    except Exception:  # the layer is called differently; its effect shows in the logits
        return False
    return bool((one - other).abs().max() > _TOLERANCE * one.std().clamp_min(1e-9))
