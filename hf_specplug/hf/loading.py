"""Loading a model by its name, for every command: what fails is said in one line."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug.errors import ModelError, OptionError

DTYPES = ("float32", "bfloat16", "float16")

_LONGEST = 300  # characters of a reason


def load(name: str, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """A causal language model, ready to generate, and its tokenizer.

    Args:
        name: folder or Hub name.
        dtype: of its weights, or "auto": as they were saved, float32 on a CPU.
        device: as torch names it; an accelerator if there is one.

    Raises:
        OptionError: an unknown dtype.
        ModelError: it cannot be loaded; the message says why in one line.

    Example:
        >>> model, tokenizer = load("Qwen/Qwen3-0.6B", "bfloat16")  # doctest: +SKIP
    """
    if dtype not in ("auto", *DTYPES):
        raise OptionError(f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not {dtype!r}")
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=kind).eval()
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:  # damaged files fail in many ways
        raise model_error(name, error) from error
    if dtype == "auto" and model.device.type == "cpu":
        model.float()
    return model, tokenizer(name)


def tokenizer(name: str) -> Any:
    """The tokenizer of a model.

    Raises:
        ModelError: it cannot be loaded; the message says why in one line.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise model_error(name, error) from error


def model_error(name: str, error: Exception) -> ModelError:
    """Why a model cannot be loaded, in one line."""
    why = shorten(str(error), _LONGEST, placeholder=" ...") or type(error).__name__
    return ModelError(
        f"{name} cannot be loaded; it must be a folder with a causal language model and its "
        f"tokenizer as save_pretrained writes them, or such a model's name on the Hub. {why}"
    )
