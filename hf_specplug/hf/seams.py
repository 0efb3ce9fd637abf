"""Where a layer's computation can be replaced: the functions that a model file's layers call.

Layers look such a function up in the globals of their module at each call. A `Switch` is bound to
its name while a thread needs it. It runs that thread's replacement, and in any other thread the
function itself. The last thread that needs it binds the function again.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_specplug.hf import delta_rule, selective_scan, tree_windows
from hf_specplug.hf.support import device_of

DELTA_RULE, SCAN, CONVOLUTION = "delta rule", "selective scan", "convolution"

_ARGUMENTS = {
    DELTA_RULE: {"query", "key", "value", "g", "beta", "initial_state", "output_final_state"},
    SCAN: {"hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "initial_states", "chunk_size"},
    CONVOLUTION: {"hidden_states", "weight", "bias", "activation"},
}
_OF_ONE_TOKEN = "conv_state"  # the argument of functions that are called for single tokens only
_TOLERANCE = 1e-2  # kernels for accelerators round their products to few digits

_lock = threading.RLock()


class _Thread(threading.local):
    """Per thread: what runs instead of the functions of each role; None outside `replaced`."""

    replacements: dict[str, Callable[..., Any]] | None = None


_thread = _Thread()


class Switch:
    """Stands for a function of a model file while some thread replaces it.

    Args:
        scope: the globals of the model file.
        name: the function's name there.
        role: `DELTA_RULE`, `SCAN` or `CONVOLUTION`.
    """

    def __init__(self, scope: dict[str, Any], name: str, role: str) -> None:
        self.function = scope[name]
        self._scope, self._name, self._role = scope, name, role
        self._users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        replacements = None if torch.compiler.is_compiling() else _thread.replacements
        if replacements is None:
            return self.function(*args, **kwargs)
        return replacements[self._role](self.function, *args, **kwargs)

    def __enter__(self) -> None:
        with _lock:
            if not self._users:
                self.function, self._scope[self._name] = self._scope[self._name], self
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with _lock:
            self._users -= 1
            if not self._users and self._scope[self._name] is self:
                self._scope[self._name] = self.function


@contextmanager
def replaced(switches: list[Switch], replacements: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Context manager in which functions are replaced, in this thread only.

    Args:
        replacements: by role; each is called with the function and its arguments.
    """
    with ExitStack() as stack:
        for switch in switches:
            stack.enter_context(switch)
        before, _thread.replacements = _thread.replacements, replacements
        try:
            yield
        finally:
            _thread.replacements = before


def switches(model: PreTrainedModel) -> list[Switch]:
    """The switches of the functions that a model's recurrent layers call.

    Empty if it has no layers with a gated delta rule or a selective scan, or if one of them
    computes in a way that is not known.
    """
    found: dict[int, Switch] = {}
    device = device_of(model).type
    for kind in {type(module) for module in model.modules()}:
        of_kind = _switches(kind, device)  # type: ignore[arg-type]
        if of_kind is None:
            return []
        found |= {id(switch): switch for switch in of_kind}
    return list(found.values())


@cache
def _switches(kind: type[nn.Module], device: str) -> list[Switch] | None:
    """The switches of a layer type; None if it computes in a way that is not known.

    Functions are recognized by their arguments, and must compute what ours compute.
    """
    forward = inspect.unwrap(getattr(kind, "forward", None))  # type: ignore[arg-type]
    scope = getattr(forward, "__globals__", {})
    used = getattr(getattr(forward, "__code__", None), "co_names", ())
    functions = {name: _function(scope[name]) for name in used if name in scope}
    by_role = {
        role: [name for name, function in functions.items() if _takes(function, arguments)]
        for role, arguments in _ARGUMENTS.items()
    }
    if not by_role[DELTA_RULE] and not by_role[SCAN]:
        return []
    found = [(name, role) for role, names in by_role.items() for name in names]
    known = bool(by_role[CONVOLUTION])
    if not known or not all(_IS[role](functions[name], device) for name, role in found):
        return None
    return [_switch(scope, name, role) for name, role in found]


def _function(found: Any) -> Any:
    """What a name is bound to while no thread replaces it."""
    return found.function if isinstance(found, Switch) else found


_made: dict[tuple[int, str], Switch] = {}


def _switch(scope: dict[str, Any], name: str, role: str) -> Switch:
    """The one switch of a function: several layer types may call it."""
    with _lock:
        key = id(scope), name  # a module's globals live as long as the process
        if key not in _made:
            _made[key] = Switch(scope, name, role)
        return _made[key]


def _takes(function: Any, arguments: set[str]) -> bool:
    if not inspect.isfunction(function):
        return False
    parameters = set(inspect.signature(function).parameters)
    return arguments <= parameters and _OF_ONE_TOKEN not in parameters


def _is_rule(function: Callable[..., Any], device: str) -> bool:
    """Whether a function computes the gated delta rule, with decays per head or per channel."""
    return any(_computes_rule(function, device, channels) for channels in ((), (16,)))


def _computes_rule(function: Callable[..., Any], device: str, channels: tuple[int, ...]) -> bool:
    random = _random(device)
    query, key, value = (random(1, 3, 2, 16) for _ in range(3))
    decay, beta = -random(1, 3, 2, *channels).abs(), random(1, 3, 2).sigmoid()
    state, seen = random(1, 2, 16, 16), torch.ones(3, 3, device=device).tril().bool()
    try:
        outputs, last = function(
            query,
            key,
            value,
            g=decay,
            beta=beta,
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
    except Exception:  # it takes other arguments than these
        return False
    ours, recurrence = delta_rule.solve(query, key, value, decay, beta, state, seen, True)
    after = recurrence.after(torch.arange(3, device=device))
    return _alike(outputs, ours) and _alike(last, after)


def _is_scan(function: Callable[..., Any], device: str) -> bool:
    """Whether a function computes Mamba2's recurrence."""
    random = _random(device)
    values, rate = random(1, 3, 4, 16), -random(4).abs()
    dt, key, query = (random(1, 3, *shape) for shape in ((4,), (2, 16), (2, 16)))
    state, seen = random(1, 4, 16, 16), torch.ones(3, 3, device=device).tril().bool()
    try:
        outputs, last = function(
            values,
            dt,
            rate,
            key,
            query,
            chunk_size=4,
            D=None,
            dt_softplus=True,
            initial_states=state,
            return_final_states=True,
        )
    except Exception:  # it takes other arguments than these
        return False
    dt = torch.nn.functional.softplus(dt)
    ours, recurrence = selective_scan.scan(values, dt, rate, key, query, state.mT, seen)
    after = recurrence.after(torch.arange(3, device=device)).mT
    return _alike(outputs, ours) and _alike(last, after)


def _is_convolution(function: Callable[..., Any], device: str) -> bool:
    """Whether a function computes a depthwise causal convolution."""
    random = _random(device)
    columns, weight, bias = random(1, 8, 6), random(8, 4), random(8)
    read = torch.arange(3, device=device)[:, None] + torch.arange(4, device=device)
    try:
        outputs = function(columns, weight, bias, activation="silu")
    except Exception:  # it takes other arguments than these
        return False
    ours = torch.nn.functional.silu(tree_windows.convolve(columns, weight, bias, read))
    return _alike(outputs[..., 3:], ours)


_IS = {DELTA_RULE: _is_rule, SCAN: _is_scan, CONVOLUTION: _is_convolution}


def _random(device: str) -> Callable[..., torch.Tensor]:
    """Makes tensors of numbers in [-0.5, 0.5) that do not come from the process's generators."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.rand(shape, generator=generator).to(device) - 0.5


def _alike(found: Any, expected: torch.Tensor) -> bool:
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() < _TOLERANCE * expected.abs().max())
