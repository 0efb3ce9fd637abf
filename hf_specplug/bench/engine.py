"""`specplug bench engine`: transformers' own ways to decode and ours, side by side."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.benchmark import Timer
from transformers import CompileConfig, PreTrainedModel

from hf_specplug.attachment import attach
from hf_specplug.bench import environment
from hf_specplug.bench.methods import STATIC, Method
from hf_specplug.bench.widths import step_milliseconds
from hf_specplug.errors import OptionError
from hf_specplug.hf import loading
from hf_specplug.hf.attention import folded_attention, sdpa_attention_forward
from hf_specplug.hf.compiling import compiled_everywhere
from hf_specplug.plug import SpecPlug
from hf_specplug.replay import teacher_forcing
from hf_specplug.verify.static import PADDED_WIDTHS

LEAST = 96  # tokens of an answer


def engine(
    model_name: str,
    texts: str,
    per_task: int,
    tokens: int,
    dtype: str,
    contexts: str,
    compiled: bool,
    out: str | None,
) -> None:
    """Measure, print tables, and write `out`; the arguments are those of the command.

    Raises:
        OptionError: a dtype or context that is none.
        ModelError: the model cannot be loaded.
        RecordingError: `texts` cannot be used, or another text came out.
    """
    lengths = _lengths(contexts)
    model, tokenizer = loading.load(model_name, dtype)
    device = model.device.type
    attach(model)
    answers = [
        teacher_forcing.Answer(answer.task, answer.prompt.to(device), answer.tokens)
        for answer in teacher_forcing.load(
            texts, tokenizer, per_task, tokens, least=min(LEAST, tokens)
        )
    ]
    console = Console(highlight=False)
    methods = _methods(device, compiled)
    for way in track(methods, "first calls", console=console, transient=True):
        teacher_forcing.measure(model.generate, answers[0], way.arguments)
        teacher_forcing.measure(model.generate, answers[-1], way.arguments)
        if way.plug is not None:
            way.plug.warmup(model, _longest(answers), **way.settings)
            way.plug.stats.reset()
    rows: list[dict[str, Any]] = []
    for answer in track(answers, "answers", console=console, transient=True):
        row: dict[str, Any] = {"task": answer.task, "tokens": len(answer.tokens)}
        for way in methods:
            row[way.name] = teacher_forcing.measure(model.generate, answer, way.arguments)
        rows.append(row)
    steps = {
        f"{way.name} at {length}": step_milliseconds(model, length, way)
        for length in track(lengths, "widths", console=console, transient=True)
        for way in methods
        if way.plug is not None
    }
    console.print(_speeds(methods, rows, f"{model_name}, {dtype}, {device}, {len(rows)} answers"))
    console.print(_widths(steps, "ms per forward pass by tokens checked"))
    attention: dict[str, dict[int, float]] = {}
    for length in lengths:
        attention |= _attention_milliseconds(model, length, compiled)
    console.print(_widths(attention, "ms of one layer's attention by tokens checked"))
    if out:
        stats = {way.name: way.plug.stats.to_dict() for way in methods if way.plug}
        figures = {"rows": rows, "milliseconds by width": steps, "stats": stats}
        figures["attention milliseconds by width"] = attention
        arguments = {"model": model_name, "texts": texts, "tokens": tokens, "dtype": dtype}
        environment.write(out, arguments, **figures)


def _longest(answers: list[teacher_forcing.Answer]) -> int:
    return max(answer.prompt.shape[1] + len(answer.tokens) for answer in answers)


def _lengths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"contexts are numbers of tokens, with commas, not {text!r}")
    return [int(part) for part in parts]


def _methods(device: str, compiled: bool) -> list[Method]:
    own: dict[str, Any] = {} if device == "cuda" else STATIC  # on CUDA the engine is static anyway
    methods = [
        Method("generate", {}),
        Method("prompt lookup", {"prompt_lookup_num_tokens": 10}),
        Method("static cache", STATIC),
        Method("specplug eager", {"disable_compile": True}, SpecPlug()),
        Method("specplug", own, SpecPlug()),
    ]
    if compiled:
        config = compiled_everywhere(CompileConfig())
        how = {"compile_config": config, **own}
        methods.append(Method("specplug compiled", how, SpecPlug()))
    return methods


def _attention_milliseconds(
    model: PreTrainedModel, length: int, compiled: bool
) -> dict[str, dict[int, float]]:
    """Median time of one layer's attention over a tree after `length` tokens, by how it is done."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    where: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    module: Any = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    keys, values = (torch.randn(1, groups, length + 64, size, **where) for _ in range(2))
    ways: dict[str, Callable[..., Any]] = {
        "transformers' sdpa": lambda *arguments: sdpa_attention_forward(module, *arguments),
        "folded heads": lambda *arguments: folded_attention(module, *arguments),
    }
    if compiled:
        flex = torch.compile(flex_attention, dynamic=False)
        ways["flex attention"] = lambda query, keys, values, mask: flex(
            query,
            keys,
            values,
            score_mod=lambda score, _b, _h, q, k: torch.where(mask[0, 0, q, k], score, -1e9),
            enable_gqa=heads != groups,
        )
    times: dict[str, dict[int, float]] = {}
    for name, way in ways.items():
        for width in PADDED_WIDTHS:
            query = torch.randn(1, heads, width, size, **where)
            mask = torch.ones(1, 1, width, length + 64, dtype=torch.bool, device=model.device)
            mask[..., length + width :] = False
            with torch.no_grad():
                measurement = Timer(
                    "way(query, keys, values, mask)",
                    globals={"way": way, "query": query, "keys": keys, "values": values}
                    | {"mask": mask},
                    num_threads=torch.get_num_threads(),
                ).blocked_autorange(min_run_time=0.1)
            times.setdefault(f"{name} at {length}", {})[width] = 1e3 * measurement.median
    return times


def _speeds(methods: list[Method], rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, padding=(0, 0, 0, 1))
    table.add_column("method", no_wrap=True)
    for column in ("tokens/s", "x generate", "x static", "accept\nlength", "host ms\nper step"):
        table.add_column(column, justify="right")
    total = {way.name: sum(row[way.name] for row in rows) for way in methods}
    count = sum(row["tokens"] for row in rows)
    for way in methods:
        name, plug = way.name, way.plug
        accept = host = ""
        if plug is not None and plug.stats.forwards:
            spent = sum(plug.stats.seconds[phase] for phase in ("draft", "accept", "observe"))
            accept = f"{plug.stats.accept_length:.2f}"
            host = f"{1e3 * spent / plug.stats.forwards:.2f}"
        table.add_row(
            name,
            f"{count / total[name]:.1f}",
            f"{total['generate'] / total[name]:.3f}",
            f"{total['static cache'] / total[name]:.3f}",
            accept,
            host,
        )
    return table


def _widths(steps: dict[str, dict[int, float]], title: str) -> Table:
    table = Table(title=title, padding=(0, 0, 0, 1))
    table.add_column("after so many tokens", no_wrap=True)
    for width in PADDED_WIDTHS:
        table.add_column(str(width), justify="right")
    for name, times in steps.items():
        table.add_row(name, *(f"{times[width]:.3g}" for width in PADDED_WIDTHS))
    return table
