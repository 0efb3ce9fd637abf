"""The present state of a model: its classes, its mode, and what was patched in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_specplug.hf.attention import implementation
from hf_specplug.hf.prefill import METHODS
from hf_specplug.verify.packed import KEY as PACKED


def is_stock(model: nn.Module) -> bool:
    """Whether a model is unpatched, in eval mode, and only of torch and transformers classes."""
    methods = (getattr(type(model), name, None) for name in METHODS)
    return all(_is_native(method) for method in methods if method is not None) and not any(
        own.keys() & METHODS or module.training or _is_foreign(module) or _hooks(own)
        for module in model.modules()
        for own in (vars(module),)
    )


def _is_foreign(module: nn.Module) -> bool:
    """Whether a module, its `forward` or the type of one of its own weights is third-party code."""
    kind = _kind(module)
    plain = all(w is None or type(w.data) is torch.Tensor for w in module._parameters.values())
    return not (plain and _is_native(kind) and _is_native(kind.forward))


def _is_native(thing: Any) -> bool:
    """Whether a class or function belongs to torch or transformers, quantizers excluded."""
    top, inner = [*thing.__module__.split("."), ""][:2]
    if top == "torch":
        return inner in ("nn", "utils")  # `utils` has method decorators
    return top == "transformers" and inner not in ("integrations", "quantizers")


_OURS = "hf_specplug."
_NO_SWITCHES = frozenset(vars(nn.Module())) | {PACKED, "forward"}


def fingerprint(model: PreTrainedModel) -> int:
    """A hash that changes when the rows of a forward pass may start to depend on each other.

    It covers classes, modes, hooks, replaced methods, and all switches below the root (adapters on
    or off), but not the values of weights.
    """
    parts: list[Any] = [_qualified(vars(model).get(name)) for name in sorted(METHODS)]
    for name, module in model.named_modules():
        own = vars(module)
        kind = _kind(module)
        parts += (name, kind, kind.forward, module.training)
        if "forward" in own:
            parts.append(_qualified(own["forward"]))
        if own["_forward_pre_hooks"] or own["_forward_hooks"]:
            parts += [type(hook) for hook in _hooks(own)]
        for key, weight in module._parameters.items():
            if weight is not None:
                parts += (key, type(weight.data), weight.dtype)
        if name:
            parts += [(key, _switch(own[key])) for key in own.keys() - _NO_SWITCHES]
    parts.append(implementation(model))
    return hash(tuple(parts))


def _hooks(own: Mapping[str, Any]) -> list[Any]:
    """The hooks of a module, without those that this package adds during another call."""
    every = [*own["_forward_pre_hooks"].values(), *own["_forward_hooks"].values()]
    return [hook for hook in every if not _module_name(hook).startswith(_OURS)]


def _module_name(hook: Any) -> str:
    """The name of the Python module that defines a hook."""
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


def has_active_alora(model: nn.Module) -> bool:
    """Whether PEFT has activated an aLoRA adapter for this call, which it does by hooks."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    offsets = (getattr(hook, "keywords", {}).get("alora_offsets") for hook in hooks)
    return any(offset is not None for row in offsets if row for offset in row)


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class of a module, as it is when no call has put in packed weights."""
    return nn.Linear if type(module).__module__.startswith(_OURS) else type(module)


def _qualified(method: Any) -> str:
    return f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', type(method))}"


def _switch(value: Any) -> Any:
    """The part of an attribute that may be a switch (names, flags, lists of names), or its type."""
    if value is None or isinstance(value, torch.Tensor):
        return None  # state that belongs to a text comes and goes
    if isinstance(value, bool | str | torch.dtype):
        return value
    if isinstance(value, list | tuple | set) and len(value) <= 64:
        return tuple(part for part in value if isinstance(part, bool | str))
    if isinstance(value, dict) and len(value) <= 64:
        return tuple(str(key) for key in value)
    return type(value)
