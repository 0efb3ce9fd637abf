"""What `specplug demo` shows: a table of speeds, and one answer with drafted tokens in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_specplug import DEMO_MODEL
from hf_specplug.bench.demo import (
    PENALTY,
    PROMPTS,
    Comparison,
    Demo,
    build_standard_library,
    standard_library,
)
from hf_specplug.bench.generation import Generation
from hf_specplug.cli import console
from hf_specplug.entrypoints.attachment import attach
from hf_specplug.hf import loading

STYLES = {"context": "bold green", "recycling": "bold magenta", "both": "bold yellow"}


def run(
    model_name: str | None,
    prompts: list[str] | None,
    tokens: int,
    dtype: str,
    threads: int,
    color: bool,
    store: bool,
) -> bool:
    """Run the demo and print it.

    Args:
        model_name: folder or Hub name; None for the built-in model.
        prompts: None for the built-in ones.
        tokens: the maximum length of an answer in tokens.
        dtype: of the weights.
        threads: CPU threads; 0 for torch's default.
        color: print an answer with drafted tokens in colour.
        store: also draft from a datastore of Python's standard library, which is built once.

    Returns:
        Whether the outputs were identical.

    Raises:
        OptionError: an unknown dtype.
        ModelError: the model cannot be loaded.
        StoreError, OSError: the datastore cannot be built.
    """
    if threads:
        torch.set_num_threads(threads)
    terminal = console.output()
    model, tokenizer = loading.load(model_name or str(DEMO_MODEL), dtype)
    attach(model)
    demo = Demo(model, tokenizer, _standard_library(tokenizer, terminal) if store else None)
    questions = prompts or list(PROMPTS)
    demo.warm_up(questions[0], tokens)
    results = [
        demo.compare(question, tokens) for question in console.progress(questions, "generating")
    ]
    terminal.print(_table(model_name or "the built-in demo model", dtype, results))
    if color:
        saved = max(results, key=lambda result: len(result.plug.tokens) - result.plug.forwards)
        terminal.print(_coloured(tokenizer, saved))
    terminal.print(demo.plug.stats)
    return all(result.identical for result in results)


def _standard_library(tokenizer: Any, terminal: Console) -> Path:
    path, built = standard_library(tokenizer)
    if not built:
        with terminal.status("building a datastore of Python's standard library, once"):
            build_standard_library(path, tokenizer)
    return path


def _table(name: str, dtype: str, results: list[Comparison]) -> Table:
    title = f"model.generate without and with the plug\n{name}, {dtype}, greedy"
    title = f"{title}, repetition penalty {PENALTY}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("prompt", max_width=17, no_wrap=True)
    columns = ["new", "plain\ntok/s", "plug\ntok/s", "ratio", "accept\nlength"]
    if results[0].store is not None:
        columns += ["with\nstore", "accept\nlength"]
    for column in columns:
        table.add_column(column, justify="right", min_width=len(max(column.split(), key=len)))
    table.add_column("output", no_wrap=True)
    for result in results:
        table.add_row(result.prompt, *_cells(result), _verdict(result.identical))
    table.add_section()
    stores = [result.store for result in results if result.store is not None]
    total = Comparison(
        "all",
        _sum([result.plain for result in results]),
        _sum([result.plug for result in results]),
        _sum(stores) if stores else None,
    )
    same = all(result.identical for result in results)
    table.add_row(total.prompt, *_cells(total), _verdict(same))
    return table


def _cells(result: Comparison) -> list[str]:
    plain, plug, store = result.plain, result.plug, result.store
    count = len(plug.tokens)
    cells = [
        f"{count}",
        f"{count / plain.seconds:.0f}",
        f"{count / plug.seconds:.0f}",
        f"{plain.seconds / plug.seconds:.2f}x",
        f"{count / plug.forwards:.2f}",
    ]
    if store is not None:
        cells += [f"{plain.seconds / store.seconds:.2f}x", f"{count / store.forwards:.2f}"]
    return cells


def _verdict(identical: bool) -> str:
    return "identical" if identical else "[red]DIFFERENT[/red]"


def _sum(parts: list[Generation]) -> Generation:
    return Generation(
        [[token for part in parts for token in part.tokens]],
        sum(part.seconds for part in parts),
        sum(part.forwards for part in parts),
    )


def _coloured(tokenizer: Any, result: Comparison) -> Text:
    """The text of one answer; drafted tokens have the colour of their drafter."""
    text = Text.assemble("\nTokens accepted from ", ("context", STYLES["context"]), ", ")
    text.append("recycling", STYLES["recycling"])
    text.append(", ")
    text.append("both", STYLES["both"])
    text.append(f"; the rest is the model's own. Prompt: {result.prompt}\n\n")
    styles = ["", *STYLES.values()]
    written = ""
    for place, origin in enumerate(result.origins, start=1):
        # decode up to here, not token by token: a character may span tokens
        whole = tokenizer.decode(result.plug.tokens[:place])
        if not whole.endswith("\ufffd"):
            text.append(whole[len(written) :], styles[origin & 3])
            written = whole
    return text
