"""Packed weights: linear layers on a CPU whose weights are reordered once, for few tokens.

A forward pass over one to about sixty tokens is bound by reading weights. There, torch's `linear`
often reads them at a third to a half of the memory bandwidth, because it reorders them on each
call. oneDNN, the library behind it, can keep the reordered layout. A trial on the model's own
layers says which of them gain by that, and from how many tokens on. This takes a second copy of
those weights in memory: one per model, however many plugs and calls use it.

While a call is open, the layers have a class of this module, in the same manner as in
`torch.nn.utils.parametrize`. Any other user of the model at that time (another thread, a callback)
gets bit-identical results to those of the plain layers. A copy or a pickle of the model has plain
layers.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
import xxhash
from torch import nn

from hf_specplug import forking
from hf_specplug.verify.packing_trial import (
    Kind,
    kind_of,
    pack,
    packed_linear,
    rows_to_pack_for,
)

_SPARE = 2.0  # available memory required, as a multiple of the packed weights' size

PACK_AFTER = 12
"""Forward passes before weights are packed: packing costs about as many."""

COMPARE_AFTER = 4
"""Forward passes of a call before packed weights are compared with the model's and used. Comparing
takes about as long as a pass, which a short answer does not earn back."""


class _Thread(threading.local):
    """`packed`: whether this thread is in a forward pass that uses packed weights."""

    packed = False


_thread = _Thread()


class PackedLinears:
    """The packed weights of one model, shared by all open calls on it.

    Inside `with linears:`, forward passes of the model on this thread use the packed weights. Only
    plain `nn.Linear` layers on a CPU, in float32 or bfloat16, are packed. Weights that changed
    between two calls (by training, or by merging adapters) are packed again: each call of more than
    `COMPARE_AFTER` passes compares a fingerprint of all weights, which takes as long as reading
    them once. During a call, torch's version counter of in-place changes is compared.
    """

    def __init__(self) -> None:
        self._packed: dict[int, torch.Tensor] = {}  # by fingerprint of the weight
        self._rows: dict[Kind, int] | None = None  # of the trial; None before it
        self._layers: list[nn.Linear] = []
        self._patched: set[nn.Linear] = set()
        self._passes = 0
        self._open: Counter[int] = Counter()  # number of open calls by thread id
        self.lock = threading.RLock()
        forking.register(self)

    def open(self, model: nn.Module) -> None:
        """Begin a call on this thread."""
        with self.lock:
            if not self._open:
                self._passes = 0
            self._open[threading.get_ident()] += 1
            self._layers = _plain_layers(model)
            if self._patched:
                self._patch()

    def step(self) -> None:
        """Count a forward pass that is about to run; after some of them, use packed weights."""
        passes = self._passes = self._passes + 1
        if not self._patched and passes % (COMPARE_AFTER if self._packed else PACK_AFTER) == 0:
            self.warm()

    def warm(self) -> None:
        """Use packed weights if that is worthwhile; returns at once if a thread is packing."""
        if self.lock.acquire(blocking=False):
            try:
                if not self._patched and (self._packed or self._is_worthwhile()):
                    self._patch()
            finally:
                self.lock.release()

    def close(self) -> None:
        """End a call of this thread; after the last one, the layers are restored."""
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

    def _is_worthwhile(self) -> bool:
        if self._rows is None:
            self._rows = rows_to_pack_for(self._layers)
        needed = sum(layer.weight.nbytes for layer, _ in self._worthwhile())
        return needed > 0 and available_memory() > _SPARE * needed

    def _worthwhile(self) -> list[tuple[nn.Linear, int]]:
        """The layers that gain by packed weights, and the rows from which they do."""
        found = [(layer, (self._rows or {}).get(kind_of(layer.weight))) for layer in self._layers]
        return [(layer, rows) for layer, rows in found if rows is not None]

    def _patch(self) -> None:
        """Update the packed weights, and make the layers use them."""
        known, self._packed = self._packed, {}
        for layer, rows in self._worthwhile():
            weight = layer.weight
            version = _version(weight)
            mark = _fingerprint(weight)
            if mark not in self._packed:
                self._packed[mark] = known[mark] if mark in known else pack(weight)
            self._patched.add(layer)
            least = rows * layer.in_features
            vars(layer)[KEY] = _Packed(self._packed[mark], weight.detach(), version, least)
            layer.__class__ = _PackedLinear

    def after_fork(self) -> None:
        """In a forked child: end the calls of other threads, which do not exist there."""
        thread = threading.get_ident()
        self._open = +Counter({thread: self._open[thread]})
        if not self._open:
            self._restore()


_shared: WeakKeyDictionary[nn.Module, ref[PackedLinears]] = WeakKeyDictionary()


def packed_linears(model: nn.Module) -> PackedLinears:
    """The packed weights of a model: one shared object, for as long as a caller refers to it."""
    with forking.lock:
        known = _shared.get(model)
        linears = None if known is None else known()
        if linears is None:
            linears = PackedLinears()
            _shared[model] = ref(linears)
        return linears


KEY = "_specplug_packed"


class _Packed(NamedTuple):
    """The packed weights of a layer.

    Attributes:
        weights: in oneDNN's layout.
        source: the weight that they were made from.
        version: its version counter.
        least: number of input elements from which they are faster.
    """

    weights: torch.Tensor
    source: torch.Tensor
    version: int | None
    least: int


class _PackedLinear(nn.Linear):
    """A layer with packed weights: the class of a plain `nn.Linear` while a call is open."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute what `nn.Linear.forward` computes."""
        if _thread.packed and type(self) is _PackedLinear and not torch.is_grad_enabled():
            own = vars(self)
            parameters, known = own["_parameters"], own.get(KEY)
            if (
                known is not None
                and input.numel() >= known.least
                and _is_current(known, parameters["weight"], input.dtype)
            ):
                return packed_linear(input, known.weights, parameters["bias"])
        return nn.functional.linear(input, self.weight, self.bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle the layer as a plain `nn.Linear`."""
        plain = nn.Linear.__new__(nn.Linear)
        vars(plain).update({key: part for key, part in vars(self).items() if key != KEY})
        return plain.__reduce_ex__(1)  # higher protocols require the class of the object itself


def _is_current(known: _Packed, weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is still the one that was packed."""
    return (
        weight.data_ptr() == known.source.data_ptr()
        and weight.dtype == dtype == known.source.dtype
        and (known.version is None or weight._version == known.version)
    )


def _version(weight: torch.Tensor) -> int | None:
    """The number of in-place changes of a weight; None if torch does not count them."""
    return None if weight.is_inference() else weight._version


def _plain_layers(model: nn.Module) -> list[nn.Linear]:
    modules = list(model.modules())
    if any(module._compiled_call_impl is not None for module in modules):
        return []  # new layer classes would make torch compile the model again
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


def _fingerprint(weight: torch.Tensor) -> int:
    raw = weight.detach().reshape(-1).view(torch.uint8).numpy()
    return hash((xxhash.xxh3_64_intdigest(raw.data), tuple(weight.shape), str(weight.dtype)))


def available_memory() -> float:
    """Memory available to this process, in bytes; 0.0 if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
        if limit.exists() and limit.read_text().strip() != "max":
            free.append(float(limit.read_text()) - float(used.read_text()))
        return min(free, default=0.0)
    except (OSError, ValueError, IndexError):
        return 0.0
