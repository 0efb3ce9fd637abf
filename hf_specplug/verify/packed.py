"""Linear layers on a CPU, with weights that are laid out once for a handful of tokens.

A forward pass over one to some sixty tokens is bound by reading weights, and torch's `linear` reads
them at a third to a half of memory speed there, because it lays them out anew each time. oneDNN
(the library behind it) can keep the layout. It costs a second copy of these weights in memory, one
for a model, however many plugs and calls use it.

While a call is open, the layers are of a class of our own, as `torch.nn.utils.parametrize` does it.
Whoever else uses the model meanwhile (another thread, a callback) gets what the layers compute
without us, to the bit; and a copy of the model, or a pickle, has plain layers.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
import xxhash
from torch import nn

from hf_specplug import forking

_TOKENS = 8  # what the layout is made for; from 1 to 64 it matters little
_PATIENCE = 12  # forward passes before the layout is made: it costs about as many
_GAIN = 0.9  # of the usual time: what it must take at most to be worth its memory
_SPARE = 2.0  # times the memory needed must be available


class _Thread(threading.local):
    """`packed`: whether this thread is in a forward pass that is to use packed weights."""

    packed = False


_thread = _Thread()


class PackedLinears:
    """The packed weights of one model, used by all calls that are open on it.

    Within it (`with linears:`) the model's forward pass uses them, on this thread. Only plain
    `nn.Linear` layers on a CPU, in float32 or bfloat16, are packed. Weights that were changed
    between two calls (training, adapters merged) are packed anew: each call compares a fingerprint
    of all of them, which takes as long as reading them once. During a call, torch's own count of
    changes in place is compared.
    """

    def __init__(self) -> None:
        self._packed: dict[int, torch.Tensor] = {}  # by the fingerprint of the weight
        self._worth: bool | None = None
        self._layers: list[nn.Linear] = []
        self._patched: set[nn.Linear] = set()
        self._passes = 0
        self._open: Counter[int] = Counter()  # calls by thread
        self.lock = threading.RLock()
        forking.register(self)

    def open(self, model: nn.Module) -> None:
        """A call begins on this thread."""
        with self.lock:
            if not self._open:
                self._passes = 0
            self._open[threading.get_ident()] += 1
            self._layers = _plain_layers(model)
            if self._packed:
                self._patch()

    def step(self) -> None:
        """A forward pass is about to be made."""
        passes = self._passes = self._passes + 1
        if passes % _PATIENCE == 0 and not self._packed:
            self.warm()

    def warm(self) -> None:
        """Pack now, if it pays at all; who comes while another thread does so does not wait."""
        if self.lock.acquire(blocking=False):
            try:
                if not self._packed and self._pays():
                    self._patch()
            finally:
                self.lock.release()

    def close(self) -> None:
        """A call of this thread ends; after the last one the layers are as before."""
        with self.lock:
            thread = threading.get_ident()
            self._open[thread] -= 1
            self._open = +self._open
            if not self._open:
                self._restore()

    def _restore(self) -> None:
        for layer in self._patched:
            if type(layer) is _PackedLinear:
                layer.__class__ = nn.Linear  # type: ignore[assignment]
            vars(layer).pop(KEY, None)
        self._layers, self._patched = [], set()

    def __enter__(self) -> None:
        _thread.packed = True

    def __exit__(self, *_: object) -> None:
        _thread.packed = False

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
            weight = layer.weight
            version = _version(weight)
            mark = _fingerprint(weight)
            if mark not in self._packed:
                self._packed[mark] = known[mark] if mark in known else _pack(weight)
            self._patched.add(layer)
            vars(layer)[KEY] = _Packed(self._packed[mark], weight.detach(), version)
            layer.__class__ = _PackedLinear

    def after_fork(self) -> None:
        """The calls of other threads are over."""
        thread = threading.get_ident()
        self._open = +Counter({thread: self._open[thread]})
        if not self._open:
            self._restore()


_shared: WeakKeyDictionary[nn.Module, ref[PackedLinears]] = WeakKeyDictionary()


def packed_linears(model: nn.Module) -> PackedLinears:
    """Those of a model: the same for all who ask, as long as somebody keeps them."""
    with forking.lock:
        known = _shared.get(model)
        linears = None if known is None else known()
        if linears is None:
            linears = PackedLinears()
            _shared[model] = ref(linears)
        return linears


KEY = "_specplug_packed"


class _Packed(NamedTuple):
    """A layer's packed weights, what they were made of, and how often that had been changed."""

    weights: torch.Tensor
    source: torch.Tensor
    version: int | None


class _PackedLinear(nn.Linear):
    """A layer whose weights are packed; the class of a plain one while a call is open."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What `nn.Linear.forward` computes."""
        if _thread.packed and type(self) is _PackedLinear and not torch.is_grad_enabled():
            own = vars(self)
            parameters, known = own["_parameters"], own.get(KEY)
            if known is not None and _is_current(known, parameters["weight"], input.dtype):
                product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                    input, known.weights, parameters["bias"], "none", [], ""
                )
                return product
        return nn.functional.linear(input, self.weight, self.bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a plain layer, in copies and pickles."""
        plain = nn.Linear.__new__(nn.Linear)
        vars(plain).update({key: part for key, part in vars(self).items() if key != KEY})
        return plain.__reduce_ex__(1)  # higher ones insist on the class of the object itself


def _is_current(known: _Packed, weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight still is what was packed."""
    return (
        weight.data_ptr() == known.source.data_ptr()
        and weight.dtype == dtype == known.source.dtype
        and (known.version is None or weight._version == known.version)
    )


def _version(weight: torch.Tensor) -> int | None:
    """How often it was changed in place; None if torch does not count."""
    return None if weight.is_inference() else weight._version


def _plain_layers(model: nn.Module) -> list[nn.Linear]:
    modules = list(model.modules())
    if any(module._compiled_call_impl is not None for module in modules):
        return []  # it would be compiled again
    return [module for module in modules if isinstance(module, nn.Linear) and _is_plain(module)]


def _is_plain(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        type(layer) in (nn.Linear, _PackedLinear)
        and "forward" not in vars(layer)
        and type(weight.data) is torch.Tensor
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.is_contiguous()
        and weight.numel() > 0
    )


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
