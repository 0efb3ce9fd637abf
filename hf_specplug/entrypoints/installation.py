"""`install` and `uninstall`: plugs for every model of the process, without attaching.

This module imports torch and transformers only where it needs them, so that `specplug run` can
prepare a program before the program imports them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hf_specplug import forking
from hf_specplug.errors import OptionError

if TYPE_CHECKING:
    from hf_specplug.plug import SpecPlug


class Plugs:
    """The plugs of all models of the process, each made at its model's first call.

    Args:
        options: those of `SpecPlug`; None if only calls that name a plug are drafted.
        on_new: called with each model and its new plug.
    """

    def __init__(
        self, options: dict[str, Any] | None, on_new: Callable[[Any, SpecPlug], None] | None = None
    ) -> None:
        self.options = options
        self._on_new = on_new
        self._of: WeakKeyDictionary[Any, SpecPlug] = WeakKeyDictionary()

    @functools.cached_property
    def template(self) -> SpecPlug:
        """What every model's plug is a copy of. Raises an error if an option is invalid."""
        from hf_specplug.plug import SpecPlug

        return SpecPlug(**(self.options or {}))

    def known(self, model: Any) -> SpecPlug | None:
        """The plug of a model; None if the model has not generated yet."""
        return self._of.get(model)

    def get(self, model: Any) -> SpecPlug:
        """The plug of a model, made if it has none yet."""
        plug = self._of.get(model)
        if plug is None:
            new = copy.deepcopy(self.template)
            new.model = model
            with forking.lock:
                plug = self._of.setdefault(model, new)
            if plug is new and self._on_new is not None:
                self._on_new(model, plug)
        return plug


class Installation:
    """What `install` returns. Used with `with`, it restores on exit what was installed before."""

    def __init__(self, before: Plugs | None) -> None:
        self._before = before

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        use(self._before)


_plugs: Plugs | None = None  # None: nothing is installed
_wrapper: Any = None  # what `GenerationMixin.generate` is while something is installed


def install(*, default: bool = False, **options: Any) -> Installation:
    """Let `generate` of every model in this process take a plug: `generate(assistant=SpecPlug())`.

    One method is replaced, `GenerationMixin.generate`, until `uninstall()`. A model with a
    `generate` of its own keeps it and is reached through it. Attached models keep their plug.
    Installing again is harmless: `install()` changes nothing then, and `install(default=True)` with
    other options makes new plugs.

    Args:
        default: draft every call. Each model gets its own plug at its first call, kept for as long
            as the model exists: `plug_of(model)`. `generate(..., assistant=None)` decodes one call
            without drafts.
        options: with `default`, those of `SpecPlug`. Each model's plug gets copies of drafter
            objects; datastores are opened once.

    Returns:
        An `Installation`. Used with `with`, it restores on exit what was installed before.

    Raises:
        OptionError, StoreError: an option has an invalid value, or options are given without
            `default`.

    Example:
        hf_specplug.install(default=True)
        pipeline("text-generation", "my-model")("Once upon a time")
    """
    if options and not default:
        raise OptionError(
            f"{', '.join(options)} given without default=True: without it, each call names its "
            "plug, generate(assistant=SpecPlug(...)), which takes these options"
        )
    before = _plugs
    if before is None or (default and before.options != options):
        plugs = Plugs(options if default else None)
        if default:
            plugs.template  # noqa: B018  # raises if an option is invalid
        use(plugs)
    return Installation(before)


def uninstall() -> None:
    """Undo `install`: `GenerationMixin.generate` is the original again."""
    use(None)


def plug_of(model: Any) -> SpecPlug | None:
    """The plug of a model: the attached one, else the one that `install(default=True)` made.

    Returns:
        None if the model has no plug, or has not generated since `install`.

    Example:
        >>> plug_of("not a model") is None
        True
    """
    from hf_specplug.entrypoints.attachment import attached_plug, unwrapped

    inner = unwrapped(model)
    return attached_plug(inner) or (_plugs.known(inner) if _plugs and _is_module(inner) else None)


def use(plugs: Plugs | None) -> None:
    """Install `plugs` in place of what is installed; None restores the original method."""
    global _plugs, _wrapper
    from transformers import GenerationMixin

    with forking.lock:
        _plugs = plugs
        ours = GenerationMixin.generate is _wrapper
        if plugs is not None and not ours:
            GenerationMixin.generate = _wrapper = _wrapped(GenerationMixin.generate)
        elif plugs is None and ours:
            # if others have wrapped it since, it stays, and passes every call on
            GenerationMixin.generate, _wrapper = _wrapper.__wrapped__, None


def _wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        plugs = _plugs
        if plugs is None:
            return original(self, *args, **kwargs)
        from hf_specplug.entrypoints import routing
        from hf_specplug.entrypoints.attachment import attached_plug

        if routing.names_plug(kwargs):
            return routing.route(original, self, None, args, kwargs)
        decided = kwargs.get("custom_generate") is not None or routing.undrafted()
        if decided or plugs.options is None or not _is_module(self):
            return original(self, *args, **kwargs)
        plug = attached_plug(self) or plugs.get(self)
        return routing.route(original, self, plug, args, kwargs)

    return generate


def _is_module(model: Any) -> bool:
    import torch

    return isinstance(model, torch.nn.Module)
