"""`attach` and `detach`: connect a plug with `model.generate` of one model instance."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Drafter
from hf_specplug.entrypoints.routing import route
from hf_specplug.errors import OptionError
from hf_specplug.plug import DEFAULT_DRAFTERS, SpecPlug


class _Attached:
    """A model method that `attach` replaces: an attribute of that one instance.

    This is a class instead of a bound method or closure, so that a deep copy or a pickle of the
    model has its own plug, bound to the copy. All other attributes (`__name__`, `__func__`,
    `__self__`, ...) are those of the original method.
    """

    name: str

    def __init__(self, model: PreTrainedModel, plug: SpecPlug, before: Any = None) -> None:
        self.model = model
        self.plug = plug
        # the instance's own method, if the model's repository defines `generate`
        self.before = before
        self.__doc__ = self._method.__doc__

    @property
    def _method(self) -> Any:
        model = self.model
        return getattr(type(model), self.name).__get__(model)

    def __getattr__(self, name: str) -> Any:
        if "model" not in vars(self):  # while the object is copied or unpickled
            raise AttributeError(name)
        return getattr(self._method, name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._method)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.plug.model = self.model


class _AttachedGenerate(_Attached):
    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return route(type(self.model).generate, self.model, self.plug, args, kwargs)


class _AttachedBatching(_Attached):
    """The entry point of `generate_batch` and servers: transformers' own loop, not drafted."""

    name = "init_continuous_batching"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.plug.record_fallback(
            "continuous batching (generate_batch) makes forward passes of its own"
        )
        return self._method(*args, **kwargs)


_METHODS = (_AttachedGenerate, _AttachedBatching)


def attach(
    model: Any,
    drafters: Iterable[str | Drafter] | str | Drafter = DEFAULT_DRAFTERS,
    nodes: int | str = "auto",
    pack: bool = True,
    datastores: Iterable[str | os.PathLike[str] | Datastore] = (),
    tokenizer: Any = None,
) -> SpecPlug:
    """Make `model.generate` draft from now on.

    Only this instance changes, until `detach(model)`. `generate(..., assistant=None)` decodes one
    call without drafts. Attaching again replaces the plug.

    Args:
        model: any model with transformers' `generate`. With `torch.compile(model)`, PEFT, DDP and
            FSDP the plug is attached to the inner model, whose `generate` runs in the end.
        drafters, nodes, pack, datastores, tokenizer: see `SpecPlug`.

    Returns:
        The plug. Its `stats` count what is drafted and accepted.

    Raises:
        OptionError: the model cannot generate, or an option has an invalid value.

    Example:
        plug = attach(model)
        model.generate(**inputs, max_new_tokens=256)
        print(plug.stats)
    """
    inner = unwrapped(model)
    if not isinstance(inner, torch.nn.Module) or not hasattr(type(inner), "generate"):
        raise OptionError(
            f"attach takes a transformers model with generate, not {type(model).__name__}"
        )
    plug = SpecPlug(
        drafters=drafters, nodes=nodes, pack=pack, datastores=datastores, tokenizer=tokenizer
    )
    plug.model = inner
    detach(inner)
    for method in _METHODS:
        if hasattr(type(inner), method.name):
            vars(inner)[method.name] = method(inner, plug, vars(inner).get(method.name))
    return plug


def detach(model: Any) -> None:
    """Undo `attach` and restore the instance. Does nothing on a model without a plug."""
    inner = unwrapped(model)
    for method in _METHODS:
        attached = vars(inner).get(method.name)
        if isinstance(attached, _Attached):
            del vars(inner)[method.name]
            if attached.before is not None:
                vars(inner)[method.name] = attached.before


def attached_plug(model: Any) -> SpecPlug | None:
    """The plug that is attached to a model, which is not wrapped in another; else None."""
    attached = getattr(model, "__dict__", {}).get("generate")
    return attached.plug if isinstance(attached, _Attached) else None


def unwrapped(model: Any) -> Any:
    """The inner model, whose `generate` runs in the end."""
    if not isinstance(model, torch.nn.Module):
        return model
    if isinstance(model, DistributedDataParallel):
        return unwrapped(model.module)
    adapted: Any = getattr(model, "get_base_model", None)  # PEFT
    if adapted is not None:
        return unwrapped(adapted())
    generate = None if hasattr(type(model), "generate") else getattr(model, "generate", None)
    owner = getattr(generate, "__self__", None)  # torch.compile's modules and FSDP pass it on
    return unwrapped(owner) if isinstance(owner, torch.nn.Module) else model
