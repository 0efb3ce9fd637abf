"""`model.generate` with hf-specplug's tree drafting: the same output in fewer forward passes."""

from __future__ import annotations

import inspect
import threading
from typing import Any

from transformers import GenerationMixin

from hf_specplug import SpecPlug, attach

OPTIONS = inspect.signature(attach).parameters.keys() - {"model", "tokenizer"}
# these only tell where this file is; transformers passes them on
LOADING = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"}
# transformers passes all of these; a user would pass a few
HANDED = inspect.signature(GenerationMixin.generate).parameters.keys() - {
    *("self", "kwargs", "custom_generate")
}
_NAME = "_specplug_custom_generate"
_lock = threading.Lock()


def generate(*inputs: Any, model: Any, **kwargs: Any) -> Any:
    """Generate as `model.generate(*inputs, **kwargs)` does, with drafting.

    A plug is kept with the model, so that the next call uses what its drafters have learned. Other
    options make a new plug. An attached model keeps its own plug, unless options are given.

    Args:
        inputs: positional arguments of `model.generate`; empty when transformers calls.
        model: the model; a keyword argument, as `from_pretrained` binds it by name.
        kwargs: keyword arguments of `model.generate`, and the options of `attach`: `drafters`,
            `nodes`, `pack`, `datastores`.

    Raises:
        OptionError, StoreError: an option has an invalid value.

    Example:
        model.generate(**inputs, custom_generate=REPOSITORY, trust_remote_code=True, nodes=16)
    """
    kwargs = {name: value for name, value in kwargs.items() if name not in LOADING}
    options = {name: _own(kwargs.pop(name)) for name in OPTIONS & kwargs.keys()}
    attached = vars(model).get("generate")
    if options or not isinstance(getattr(attached, "plug", None), SpecPlug):
        attached = _kept(model, options, kwargs.get("tokenizer"))
    if type(model).generate is not GenerationMixin.generate and kwargs.keys() >= HANDED:
        # Whisper prepares its inputs, and then calls transformers' generate, which calls this
        method = kwargs.pop("assistant", attached.plug)
        return GenerationMixin.generate(model, **kwargs, custom_generate=method)
    return attached(*inputs, **kwargs)


def _own(value: Any) -> Any:
    """A copy of a list, so that later changes by the caller do not count."""
    return list(value) if isinstance(value, list) else value


def _kept(model: Any, options: dict[str, Any], tokenizer: Any) -> Any:
    """The attached `model.generate`, without leaving the model attached."""
    with _lock:
        known, drafting = vars(model).get(_NAME, (None, None))
        if known != options:
            before = vars(model).get("generate")
            attach(model, tokenizer=tokenizer, **options)
            drafting = vars(model).pop("generate")
            if before is not None:
                vars(model)["generate"] = before
            # kept on the model: they refer to each other, and are collected together
            vars(model)[_NAME] = options, drafting
    return drafting
