"""`model.generate` with hf-specplug's tree drafting: the same output in fewer forward passes."""

from __future__ import annotations

import inspect
import threading
from typing import Any

from transformers import GenerationMixin

from hf_specplug import SpecPlug, attach

OPTIONS = inspect.signature(attach).parameters.keys() - {"model", "tokenizer"}
# what only says where this file is; transformers passes it on to us all the same
LOADING = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"}
# transformers hands over all of these; a user would name a few
HANDED = inspect.signature(GenerationMixin.generate).parameters.keys() - {
    *("self", "kwargs", "custom_generate")
}
_NAME = "_specplug_custom_generate"
_lock = threading.Lock()


def generate(*inputs: Any, model: Any, **kwargs: Any) -> Any:
    """What `model.generate(*inputs, **kwargs)` returns, drafted.

    A plug is kept with the model, so that what it learned serves the next call; other options make
    a new one. An attached model keeps its own, unless options are given.

    Args:
        inputs: what `model.generate` takes by position; empty when transformers calls.
        model: the model, always by name: `from_pretrained` binds it so.
        kwargs: everything that `model.generate` takes, and the options of `attach`: `drafters`,
            `nodes`, `pack`, `datastores`.

    Raises:
        OptionError, StoreError: an option has a value that cannot be used.

    Example:
        model.generate(**inputs, custom_generate=REPOSITORY, trust_remote_code=True, nodes=16)
    """
    kwargs = {name: value for name, value in kwargs.items() if name not in LOADING}
    options = {name: _own(kwargs.pop(name)) for name in OPTIONS & kwargs.keys()}
    attached = vars(model).get("generate")
    if options or not isinstance(getattr(attached, "plug", None), SpecPlug):
        attached = _kept(model, options, kwargs.get("tokenizer"))
    if type(model).generate is not GenerationMixin.generate and kwargs.keys() >= HANDED:
        # Whisper prepares its inputs, and calls transformers' generate, which has called us
        method = kwargs.pop("assistant", attached.plug)
        return GenerationMixin.generate(model, **kwargs, custom_generate=method)
    return attached(*inputs, **kwargs)


def _own(value: Any) -> Any:
    """A list that the caller may go on changing is compared as it is now."""
    return list(value) if isinstance(value, list) else value


def _kept(model: Any, options: dict[str, Any], tokenizer: Any) -> Any:
    """`model.generate` as `attach` makes it, without leaving it attached."""
    with _lock:
        known, drafting = vars(model).get(_NAME, (None, None))
        if known != options:
            before = vars(model).get("generate")
            attach(model, tokenizer=tokenizer, **options)
            drafting = vars(model).pop("generate")
            if before is not None:
                vars(model)["generate"] = before
            # on the model itself: they refer to each other, and so are collected together
            vars(model)[_NAME] = options, drafting
    return drafting
