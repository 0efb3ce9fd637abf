"""`attach` and `detach`: a plug behind `model.generate` of one model instance."""

from __future__ import annotations

import copy
import inspect
import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.base import Drafter
from hf_specplug.errors import OptionError
from hf_specplug.plug import DEFAULT_DRAFTERS, SpecPlug


class _AttachedGenerate:
    """`model.generate` of a model with a plug: an attribute of that one instance.

    A class and not a bound method or closure, so that a deep copy or a pickle of the model carries
    a plug of its own, bound to the copy.
    """

    def __init__(self, model: PreTrainedModel, plug: SpecPlug, before: Any = None) -> None:
        self.model = model
        self.plug = plug
        self.before = before  # of the instance: models whose repository has a `generate` have one

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.model).generate.__get__(self.model))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model, plug = self.model, self.plug
        generate = type(model).generate
        if "assistant" in kwargs:
            plug = _checked_assistant(kwargs.pop("assistant"))
        if len(args) > 1:
            bound = inspect.signature(generate).bind(model, *args, **kwargs)
            kwargs = dict(list(bound.arguments.items())[1:])
            kwargs.update(kwargs.pop("kwargs", {}))
            args = ()
        if isinstance(kwargs.get("assistant_model"), SpecPlug):
            plug = kwargs.pop("assistant_model")
        if isinstance(kwargs.get("custom_generate"), SpecPlug):
            plug = kwargs.pop("custom_generate")
        if plug is not self.plug and plug is not None and kwargs.get("custom_generate"):
            kwargs["assistant"] = plug  # another method was asked for, and is to have it
        if plug is None or kwargs.get("custom_generate") is not None:
            return generate(model, *args, **kwargs)
        reason = _left_to_transformers(model, kwargs)
        if reason:
            plug.note(reason)
            return generate(model, *args, **kwargs)
        _build_stop_strings(model, kwargs)
        kwargs["custom_generate"] = _Run(plug, kwargs.get("streamer"))
        return generate(model, *args, **kwargs)


class _Run:
    """One call: the plug, with the streamer that `generate` does not hand to a callable."""

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
        return self._plug(
            model, input_ids, inputs_tensor=inputs_tensor, streamer=self._streamer, **kwargs
        )


def _checked_assistant(assistant: Any) -> Any:
    if assistant is not None and not isinstance(assistant, SpecPlug):
        raise OptionError(
            "assistant takes a SpecPlug, or None for plain decoding, "
            f"not {type(assistant).__name__}; a draft model goes to assistant_model"
        )
    return assistant


_MODE_FIELDS = (
    "assistant_early_exit",
    "constraints",
    "do_sample",
    "force_words_ids",
    "num_beam_groups",
    "num_beams",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "top_k",
    "use_mtp",
)


def _setting(model: PreTrainedModel, kwargs: dict[str, Any], name: str) -> Any:
    """A setting as `generate` will see it: of the call, the given config or the model."""
    if name in kwargs:
        return kwargs[name]
    value = getattr(kwargs.get("generation_config"), name, None)
    return getattr(model.generation_config, name, None) if value is None else value


def _left_to_transformers(model: PreTrainedModel, kwargs: dict[str, Any]) -> str:
    """Why a call is passed on untouched, "" if it is not."""
    config = GenerationConfig()
    for name in _MODE_FIELDS:
        setattr(config, name, _setting(model, kwargs, name))
    mode = config.get_generation_mode(kwargs.get("assistant_model"))
    if mode == GenerationMode.ASSISTED_GENERATION:
        return "transformers' own assisted generation was asked for"
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"{mode.value} is not drafted"
    if kwargs.get("synced_gpus"):
        return "synced_gpus needs the same number of forward passes on every device"
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if kwargs.get("synced_gpus") is None and distributed:
        return "distributed generation is not drafted"
    return ""


def _build_stop_strings(model: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Turn stop strings into a criterion: `generate` hands a callable no tokenizer."""
    strings = _setting(model, kwargs, "stop_strings")
    if strings is None:
        return
    tokenizer = kwargs.pop("tokenizer", None)
    if tokenizer is None:
        raise OptionError(
            "stop_strings were given (in the call or the generation config), but no tokenizer: "
            "pass generate(..., tokenizer=tokenizer)"
        )
    given = kwargs.get("stopping_criteria")
    kwargs["stopping_criteria"] = StoppingCriteriaList(
        [StopStringCriteria(stop_strings=strings, tokenizer=tokenizer), *(given or [])]
    )
    if getattr(kwargs.get("generation_config"), "stop_strings", None) is not None:
        kwargs["generation_config"] = copy.deepcopy(kwargs["generation_config"])
        kwargs["generation_config"].stop_strings = None
    if "stop_strings" in kwargs or model.generation_config.stop_strings is not None:
        kwargs["stop_strings"] = None


def attach(
    model: Any,
    drafters: Iterable[str | Drafter] | str | Drafter = DEFAULT_DRAFTERS,
    nodes: int | str = "auto",
    pack: bool = True,
    datastores: Iterable[str | os.PathLike[str] | Datastore] = (),
    tokenizer: Any = None,
) -> SpecPlug:
    """Make `model.generate` draft from now on: the one line. Returns the plug, with its `stats`.

    Only this instance is changed, until `detach(model)`. `generate(..., assistant=None)` runs
    plainly once. Attaching again replaces the plug.

    Args:
        model: anything with transformers' `generate`.
        drafters, nodes, pack, datastores, tokenizer: see `SpecPlug`.

    Raises:
        OptionError: the model cannot generate, or an option has a value that cannot be used.

    Example:
        plug = attach(model)
        model.generate(**inputs, max_new_tokens=256)
        print(plug.stats)
    """
    if not isinstance(model, torch.nn.Module) or not callable(getattr(model, "generate", None)):
        raise OptionError(
            f"attach takes a transformers model with generate, not {type(model).__name__}"
        )
    plug = SpecPlug(
        drafters=drafters, nodes=nodes, pack=pack, datastores=datastores, tokenizer=tokenizer
    )
    plug._attached = weakref.ref(model)
    detach(model)
    vars(model)["generate"] = _AttachedGenerate(model, plug, vars(model).get("generate"))
    return plug


def detach(model: Any) -> None:
    """Undo `attach`: the instance is as it was. Does nothing on a model without a plug."""
    attached = vars(model).get("generate")
    if isinstance(attached, _AttachedGenerate):
        del vars(model)["generate"]
        if attached.before is not None:
            vars(model)["generate"] = attached.before
