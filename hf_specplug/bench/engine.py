"""`specplug bench engine`: the decoding loops of transformers and the engines of the plug."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.benchmark import Timer
from transformers import AttentionInterface, PreTrainedModel

from hf_specplug.bench.methods import Method, make
from hf_specplug.bench.widths import step_milliseconds
from hf_specplug.entrypoints.attachment import attach
from hf_specplug.hf import loading
from hf_specplug.hf.attention import folded_attention
from hf_specplug.replay.progress import Progress, silent
from hf_specplug.replay.teacher_forcing import Answer, load
from hf_specplug.replay.teacher_forcing import measure as seconds_of
from hf_specplug.verify.static import PADDED_WIDTHS

_SHORTEST_ANSWER = 96  # tokens
_ROOM = 64  # slots after the context, for the tree
_MIN_SECONDS = 0.1  # of timing an attention function


def measure(
    model_name: str,
    texts: str,
    per_task: int,
    tokens: int,
    dtype: str,
    contexts: Sequence[int],
    compiled: bool,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time all methods on recorded answers, and their forward passes by width.

    Args:
        model_name: folder or Hub name.
        texts: JSON lines with "prompt" and "response", and optionally "task".
        per_task: answers of each task.
        tokens: the maximum length of an answer in tokens.
        dtype: of the weights.
        contexts: lengths in tokens after which forward passes are timed.
        compiled: also measure with torch.compile.
        progress: shows how far the work is.

    Returns:
        device; rows: task, tokens, and method -> seconds for each answer; milliseconds by width and
        attention milliseconds by width: name -> width in tokens -> ms; stats: method -> counters.

    Raises:
        OptionError: an unknown dtype.
        ModelError: the model cannot be loaded.
        RecordingError: `texts` cannot be used, or another text came out.
    """
    model, tokenizer = loading.load(model_name, dtype)
    attach(model)
    shortest = min(_SHORTEST_ANSWER, tokens)
    answers = [
        dataclasses.replace(answer, prompt=answer.prompt.to(model.device))
        for answer in load(texts, tokenizer, per_task, tokens, min_tokens=shortest)
    ]
    methods = _methods(model.device.type, compiled)
    for method in progress(methods, "warm-up"):
        _warm_up(model, method, answers)
    rows = [_row(model, answer, methods) for answer in progress(answers, "answers")]
    drafting = [method for method in methods if method.plug is not None]
    steps = {
        f"{method.name} at {length}": step_milliseconds(model, length, method)
        for length in progress(contexts, "forward passes by width")
        for method in drafting
    }
    attention: dict[str, dict[int, float]] = {}
    for length in progress(contexts, "attention by width"):
        attention |= _attention_milliseconds(model, length, compiled)
    return {
        "device": model.device.type,
        "rows": rows,
        "milliseconds by width": steps,
        "stats": {each.name: each.plug.stats.to_dict() for each in drafting if each.plug},
        "attention milliseconds by width": attention,
    }


def _methods(device: str, compiled: bool) -> list[Method]:
    own = "" if device == "cuda" else ":static"  # on CUDA the static engine is the default
    written = {
        "generate": "plain",
        "prompt lookup": "prompt-lookup",
        "static cache": "static",
        "specplug eager": "specplug:eager",
        "specplug": f"specplug{own}",
    }
    if compiled:
        written["specplug compiled"] = f"specplug:compiled{own}"
    return [dataclasses.replace(make(spec), name=name) for name, spec in written.items()]


def _row(model: PreTrainedModel, answer: Answer, methods: list[Method]) -> dict[str, Any]:
    """Task, tokens, and method -> seconds of one answer."""
    row: dict[str, Any] = {"task": answer.task, "tokens": len(answer.tokens)}
    for method in methods:
        row[method.name] = seconds_of(model.generate, answer, method.arguments)
    return row


def _warm_up(model: PreTrainedModel, method: Method, answers: list[Answer]) -> None:
    """Compile, capture and pack ahead of the measurement."""
    for answer in (answers[0], answers[-1]):
        seconds_of(model.generate, answer, method.arguments)
    if method.plug is not None:
        longest = max(answer.prompt.shape[1] + len(answer.tokens) for answer in answers)
        method.plug.warmup(model, longest, **method.settings)
        method.plug.stats.reset()


def _attention_milliseconds(
    model: PreTrainedModel, length: int, compiled: bool
) -> dict[str, dict[int, float]]:
    """Median ms of one layer's attention over a tree after `length` tokens, by implementation."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    where: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    keys, values = (torch.randn(1, groups, length + _ROOM, size, **where) for _ in range(2))
    times: dict[str, dict[int, float]] = {}
    for name, attention in _attention_functions(heads, groups, compiled).items():
        for width in PADDED_WIDTHS:
            query = torch.randn(1, heads, width, size, **where)
            mask = torch.ones(1, 1, width, length + _ROOM, dtype=torch.bool, device=model.device)
            mask[..., length + width :] = False
            tensors = {"query": query, "keys": keys, "values": values, "mask": mask}
            with torch.no_grad():
                measurement = Timer(
                    "attention(query, keys, values, mask)",
                    globals={"attention": attention, **tensors},
                    num_threads=torch.get_num_threads(),
                ).blocked_autorange(min_run_time=_MIN_SECONDS)
            times.setdefault(f"{name} at {length}", {})[width] = 1e3 * measurement.median
    return times


def _attention_functions(
    heads: int, groups: int, compiled: bool
) -> dict[str, Callable[..., torch.Tensor]]:
    """Implementations of (query, keys, values, mask) -> output, by name."""
    module: Any = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    sdpa = AttentionInterface()["sdpa"]
    functions: dict[str, Callable[..., Any]] = {
        "transformers' sdpa": lambda *arguments: sdpa(module, *arguments),
        "folded heads": lambda *arguments: folded_attention(module, *arguments),
    }
    if compiled:
        flex = torch.compile(flex_attention, dynamic=False)
        functions["flex attention"] = lambda query, keys, values, mask: flex(
            query,
            keys,
            values,
            score_mod=lambda score, _b, _h, q, k: torch.where(mask[0, 0, q, k], score, -1e9),
            enable_gqa=heads != groups,
        )
    return functions
