"""Linear layers on a CPU, with weights that are laid out once for a handful of tokens.

A forward pass over one to some sixty tokens is bound by reading weights, and torch's `linear` reads
them at a third to a half of memory speed there, because it lays them out anew each time. oneDNN
(the library behind it) can keep the layout. It costs a second copy of these weights in memory.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

_TOKENS = 8  # what the layout is made for; from 1 to 64 it matters little
_PATIENCE = 12  # forward passes in a first call before the layout is made: it costs about as many
_GAIN = 0.9  # of the usual time: what it must take at most to be worth its memory
_SPARE = 2.0  # times the memory needed must be available


class PackedLinears:
    """The packed weights of one model; used between `open` and `close`, on the model itself.

    Only plain `nn.Linear` layers on a CPU, in float32 or bfloat16, are packed. Weights that were
    changed between two calls (training, adapters merged) are packed anew: each call compares a
    fingerprint of all of them, which takes as long as reading them once.
    """

    def __init__(self) -> None:
        self._packed: dict[int, torch.Tensor] = {}  # by the fingerprint of the weight
        self._worth: bool | None = None
        self._layers: list[nn.Linear] = []
        self._patched: list[nn.Linear] = []
        self._passes = 0

    def open(self, model: nn.Module) -> None:
        """A call begins."""
        self._passes = 0
        self._layers = _plain_layers(model)
        if self._packed:
            self._patch()

    def step(self) -> None:
        """A forward pass is about to be made."""
        self._passes += 1
        if self._passes == _PATIENCE:
            self.warm()

    def warm(self) -> None:
        """Pack now, if it pays at all."""
        if not self._packed and self._pays():
            self._patch()

    def close(self) -> None:
        """The model computes as before."""
        for layer in self._patched:
            vars(layer).pop("forward", None)
        self._layers, self._patched = [], []

    def _pays(self) -> bool:
        if self._worth is None:
            self._worth = bool(self._layers) and _is_faster(self._layers)
        if not self._worth:
            return False
        needed = sum(layer.weight.nbytes for layer in self._layers)
        return available_memory() > _SPARE * needed

    def _patch(self) -> None:
        """Bring the packed weights up to date, and use them."""
        known, self._packed = self._packed, {}
        for layer in self._layers:
            mark = _fingerprint(layer.weight)
            if mark not in self._packed:
                self._packed[mark] = known[mark] if mark in known else _pack(layer.weight)
            packed = partial(_forward, layer, layer.weight, self._packed[mark])
            vars(layer)["forward"] = packed
            self._patched.append(layer)


def _plain_layers(model: nn.Module) -> list[nn.Linear]:
    modules = list(model.modules())
    if any(module._compiled_call_impl is not None for module in modules):
        return []  # it would be compiled again
    return [module for module in modules if isinstance(module, nn.Linear) and _is_plain(module)]


def _is_plain(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and type(weight.data) is torch.Tensor
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.is_contiguous()
        and weight.numel() > 0
    )


def _forward(
    layer: nn.Linear, weight: torch.Tensor, packed: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """What `nn.Linear.forward` computes."""
    if torch.is_grad_enabled() or x.dtype != weight.dtype or layer.weight is not weight:
        return nn.functional.linear(x, layer.weight, layer.bias)
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        x, packed, layer.bias, "none", [], ""
    )
    return product


def _pack(weight: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TOKENS)
    return packed


def _fingerprint(weight: torch.Tensor) -> int:
    raw = weight.detach().reshape(-1).view(torch.uint8).numpy()
    return hash((xxhash.xxh3_64_intdigest(raw.data), tuple(weight.shape), str(weight.dtype)))


def _is_faster(layers: list[nn.Linear]) -> bool:
    """Try it on some layers: whether it works here, agrees, and is faster."""
    try:
        with torch.inference_mode():
            usual = packed_time = 0.0
            for layer in layers[:: max(1, len(layers) // 8)]:
                weight = layer.weight.detach()
                x = torch.ones(_TOKENS, layer.in_features, dtype=weight.dtype)
                packed = _pack(weight)
                one = nn.functional.linear(x, weight)
                other = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
                if not torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-2):
                    return False
                usual += _best_time(partial(nn.functional.linear, x, weight))
                packed_time += _best_time(
                    partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")
                )
    except (AttributeError, RuntimeError, NotImplementedError):  # a torch without these operations
        return False
    return packed_time < _GAIN * usual


def _best_time(call: Any, runs: int = 4) -> float:
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def available_memory() -> float:
    """Bytes that this process may still take, 0 if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
        if limit.exists() and limit.read_text().strip() != "max":
            free.append(float(limit.read_text()) - float(used.read_text()))
        return min(free, default=0.0)
    except (OSError, ValueError, IndexError):
        return 0.0
