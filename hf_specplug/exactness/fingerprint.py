"""What a model is at this moment: of which classes, in which mode, and what was patched in."""

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
    """Whether a model is of classes of torch and transformers, in eval mode, nothing patched in."""
    methods = (getattr(type(model), name, None) for name in METHODS)
    return all(_is_home(method) for method in methods if method is not None) and not any(
        own.keys() & METHODS or module.training or foreign(module) or _hooks(own)
        for module in model.modules()
        for own in (vars(module),)
    )


def foreign(module: nn.Module) -> bool:
    """Whether a module, its forward or how one of its own weights is kept comes from elsewhere."""
    kind = _kind(module)
    plain = all(w is None or type(w.data) is torch.Tensor for w in module._parameters.values())
    return not (plain and _is_home(kind) and _is_home(kind.forward))


def _is_home(thing: Any) -> bool:
    """Whether a class or function is of torch or transformers, and no quantizer's."""
    top, inner = [*thing.__module__.split("."), ""][:2]
    if top == "torch":
        return inner in ("nn", "utils")  # also what decorates methods
    return top == "transformers" and inner not in ("integrations", "quantizers")


_OURS = "hf_specplug."
_NO_SWITCHES = frozenset(vars(nn.Module())) | {PACKED, "forward"}


def fingerprint(model: PreTrainedModel) -> int:
    """Another number once anything may make the rows of a forward pass depend on each other.

    Classes, modes, hooks, replaced methods, and all switches below the root (adapters on or off);
    not the values of weights.
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
    """The hooks of a module that are not of this package, for the time of another call."""
    every = [*own["_forward_pre_hooks"].values(), *own["_forward_hooks"].values()]
    return [hook for hook in every if not _module(hook).startswith(_OURS)]


def _module(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


def adapts_the_last(model: nn.Module) -> bool:
    """Whether PEFT has switched on an aLoRA adapter for this call, which it does by hooks."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    offsets = (getattr(hook, "keywords", {}).get("alora_offsets") for hook in hooks)
    return any(offset is not None for row in offsets if row for offset in row)


def _kind(module: nn.Module) -> type[nn.Module]:
    """A module's class, as it is while no call has put packed weights in."""
    return nn.Linear if type(module).__module__.startswith(_OURS) else type(module)


def _qualified(method: Any) -> str:
    return f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', type(method))}"


def _switch(value: Any) -> Any:
    """What of an attribute can be a switch: names, flags and lists of names; else its type."""
    if value is None or isinstance(value, torch.Tensor):
        return None  # what is remembered of a text comes and goes
    if isinstance(value, bool | str | torch.dtype):
        return value
    if isinstance(value, list | tuple | set) and len(value) <= 64:
        return tuple(part for part in value if isinstance(part, bool | str))
    if isinstance(value, dict) and len(value) <= 64:
        return tuple(str(key) for key in value)
    return type(value)
