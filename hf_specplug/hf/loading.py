"""Models and tokenizers by name, for commands; errors give the reason in one line."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug.errors import ModelError, OptionError

DTYPES = ("float32", "bfloat16", "float16", "float64")

_LONGEST_REASON = 300  # characters


def load(name: str, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name: folder or Hub name.
        dtype: of the weights; "auto" keeps the dtype of the files, except on a CPU, where it is
            float32.
        device: a torch device; by default "cuda" if available, else "cpu".

    Returns:
        (the model in evaluation mode, the tokenizer)

    Raises:
        OptionError: the dtype is unknown.
        ModelError: the model cannot be loaded; the message says why in one line.

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
    """Load the tokenizer of a model by folder or Hub name.

    Raises:
        ModelError: the tokenizer cannot be loaded; the message says why in one line.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise model_error(name, error) from error


def model_error(name: str, error: Exception) -> ModelError:
    """The error for a model that cannot be loaded, with the reason in one line."""
    why = shorten(str(error), _LONGEST_REASON, placeholder=" ...") or type(error).__name__
    return ModelError(
        f"{name} cannot be loaded; it must be a folder with a causal language model and its "
        f"tokenizer as save_pretrained writes them, or such a model's name on the Hub. {why}"
    )
