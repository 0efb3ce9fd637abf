"""Routing of one `generate` call: to transformers as it is, or with a plug as its method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_specplug.errors import OptionError
from hf_specplug.hf.adapter import BaseStreamer
from hf_specplug.hf.call_settings import ask_for_cache, build_stop_strings, left_to_transformers
from hf_specplug.hf.compiling import many_recompiles
from hf_specplug.plug import SpecPlug

_undrafted: ContextVar[bool] = ContextVar("hf_specplug.undrafted", default=False)


def route(
    generate: Callable[..., Any],
    model: PreTrainedModel,
    default: SpecPlug | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run one call of `generate` with the plug that the call names, else with `default`.

    Args:
        generate: the function of the class, which takes the model first.
        default: the plug of calls that name none; None if such calls are not drafted.
        args, kwargs: of the call, without the model.

    Raises:
        OptionError: `assistant` is neither a SpecPlug nor None.
    """
    with many_recompiles():
        return _routed(generate, model, default, args, kwargs)


def _routed(
    generate: Callable[..., Any],
    model: PreTrainedModel,
    default: SpecPlug | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    plug = default
    if "assistant" in kwargs:
        plug = _checked_assistant(kwargs.pop("assistant"))
    if len(args) > 1:
        bound = inspect.signature(generate).bind(model, *args, **kwargs)
        kwargs = dict(list(bound.arguments.items())[1:])
        kwargs.update(kwargs.pop("kwargs", {}))
        args = ()
    for name in ("assistant_model", "custom_generate"):
        if isinstance(kwargs.get(name), SpecPlug):
            plug = kwargs.pop(name)
    if plug is not default and plug is not None and kwargs.get("custom_generate"):
        kwargs["assistant"] = plug  # another decoding method was requested: it gets the plug
    if kwargs.get("custom_generate") is not None:
        return generate(model, *args, **kwargs)
    if plug is None:
        return _plain(generate, model, args, kwargs)
    reason = left_to_transformers(model, kwargs)
    if reason:
        plug.record_fallback(reason)
        return _plain(generate, model, args, kwargs)
    ask_for_cache(model, kwargs)
    build_stop_strings(model, kwargs)
    kwargs["custom_generate"] = _Run(plug, kwargs.get("streamer"))
    return generate(model, *args, **kwargs)


def names_plug(kwargs: dict[str, Any]) -> bool:
    """Whether a call says itself by which plug it is drafted, or that it is not."""
    given = (kwargs.get("assistant_model"), kwargs.get("custom_generate"))
    return "assistant" in kwargs or any(isinstance(value, SpecPlug) for value in given)


def undrafted() -> bool:
    """Whether this code runs inside a call that is not to be drafted."""
    return _undrafted.get()


def _plain(
    generate: Callable[..., Any],
    model: PreTrainedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a call as transformers does, with the calls that it makes: those of a draft model."""
    token = _undrafted.set(True)
    try:
        return generate(model, *args, **kwargs)
    finally:
        _undrafted.reset(token)


class _Run:
    """The plug for one call, with the streamer that `generate` does not pass to a callable."""

    def __init__(self, plug: SpecPlug, streamer: BaseStreamer | None) -> None:
        self._plug = plug
        self._streamer = streamer

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        inputs_tensor: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        return self._plug.run(
            model, input_ids, inputs_tensor=inputs_tensor, streamer=self._streamer, **kwargs
        )


def _checked_assistant(assistant: Any) -> Any:
    if assistant is not None and not isinstance(assistant, SpecPlug):
        raise OptionError(
            "assistant takes a SpecPlug, or None for plain decoding, "
            f"not {type(assistant).__name__}; a draft model goes to assistant_model"
        )
    return assistant
