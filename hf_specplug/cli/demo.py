"""`specplug demo`: plain and plugged generation side by side."""

from __future__ import annotations

import os
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from hf_specplug import DEMO_MODEL
from hf_specplug.attachment import attach
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.store import Datastore, tokenizer_hash
from hf_specplug.drafters.contract import Drafter, Float32, Frontier, Int32, Step
from hf_specplug.hf import loading
from hf_specplug.plug import DEFAULT_DRAFTERS, SpecPlug

PROMPTS = (
    "Write a Python function that computes the factorial of n.",
    "Write a Python class for a stack with push, pop and is_empty, and tests for it.",
    "Natalia sold 48 clips in April, and half as many in May. How many did she sell altogether?",
    "Write a Python function that merges two sorted lists.",
    "Explain what a context manager is, with an example.",
)
STORE_TOKENS = 2_000_000
PENALTY = 1.1  # without it small models repeat themselves, which is too easy to draft
STYLES = {"context": "bold green", "recycling": "bold magenta", "both": "bold yellow"}


class Recorder(Drafter):
    """Proposes nothing; remembers who had drafted each emitted token."""

    name: ClassVar[str] = "recorder"

    def __init__(self) -> None:
        self.priors: Float32 = np.ones(1, np.float32)
        self.origins: list[int] = []

    def begin(self, context: Any) -> None:
        self.origins = []

    def expand(self, frontier: Frontier) -> Int32:
        return np.empty((0, 3), np.int32)

    def observe(self, step: Step) -> None:
        drafted = step.sources[step.visited[1:]].tolist()
        self.origins += drafted + [0] * (len(step.emitted) - len(drafted))


@dataclass
class Comparison:
    """One prompt, run both ways: seconds of each, and what came out."""

    prompt: str
    plain_seconds: float
    plug_seconds: float
    tokens: int
    forwards: int
    identical: bool
    output: list[int]
    origins: list[int] = field(default_factory=list)
    store_seconds: float = 0.0
    store_forwards: int = 0


def run(
    model_name: str | None,
    prompts: list[str] | None,
    tokens: int,
    dtype: str,
    threads: int,
    color: bool,
    store: bool,
) -> bool:
    """Run the demo and print it; return whether all outputs were identical.

    Args:
        store: also draft from a datastore of Python's standard library, built once.

    Raises:
        OptionError: an unknown dtype.
        ModelError: the model cannot be loaded.
    """
    if threads:
        torch.set_num_threads(threads)
    console = Console(highlight=False)
    source = model_name or str(DEMO_MODEL)
    model, tokenizer = loading.load(source, dtype)
    recorder = Recorder()
    attach(model)
    plug = SpecPlug(drafters=[*DEFAULT_DRAFTERS, recorder])
    stored = SpecPlug(datastores=[_standard_library(tokenizer, console)]) if store else None
    questions = prompts or list(PROMPTS)
    _compare(model, tokenizer, plug, stored, questions[0], min(tokens, 32))  # warm all up
    plug.stats.reset()
    results = []
    for question in track(questions, "generating", console=console, transient=True):
        results.append(_compare(model, tokenizer, plug, stored, question, tokens))
        results[-1].origins = list(recorder.origins)
    name = model_name or "the built-in demo model"
    console.print(_table(name, dtype, results))
    if color:
        longest = max(results, key=lambda result: result.tokens - result.forwards)
        console.print(_coloured(tokenizer, longest))
    console.print(plug.stats)
    return all(result.identical for result in results)


def _standard_library(tokenizer: Any, console: Console) -> Path:
    """A store of the interpreter's standard library in the user's cache, built if it is not there.

    Raises:
        StoreError, OSError: it cannot be built there.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_specplug"
    path = cache / f"stdlib-{tokenizer_hash(tokenizer)[:8]}.store"
    if not path.exists() or Datastore(path).manifest.build:
        with console.status("building a datastore of Python's standard library, once"):
            files = Corpus(find([sysconfig.get_paths()["stdlib"]]))
            options = BuildOptions(max_tokens=STORE_TOKENS)
            build(path, files, tokenizer, options, lambda error: None, lambda *counts: None)
    return path


def _compare(
    model: Any,
    tokenizer: Any,
    plug: SpecPlug,
    stored: SpecPlug | None,
    question: str,
    tokens: int,
) -> Comparison:
    """Plain first, then plugged, then with a store, on the same prompt."""
    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        inputs = tokenizer(question, return_tensors="pt")
    inputs = inputs.to(model.device)
    settings = {"max_new_tokens": tokens, "do_sample": False, "repetition_penalty": PENALTY}
    start = time.perf_counter()
    plain = model.generate(**inputs, **settings, assistant=None)
    middle = time.perf_counter()
    before = plug.stats.forwards
    plugged = model.generate(**inputs, **settings, assistant=plug)
    end = time.perf_counter()
    length = inputs["input_ids"].shape[1]
    identical = torch.equal(plain, plugged)
    seconds, forwards = 0.0, 0
    if stored is not None:
        stored.stats.reset()
        begin = time.perf_counter()
        output = model.generate(**inputs, **settings, assistant=stored)
        seconds, forwards = time.perf_counter() - begin, stored.stats.forwards + 1
        identical &= torch.equal(plain, output)
    return Comparison(
        prompt=question,
        plain_seconds=middle - start,
        plug_seconds=end - middle,
        tokens=plugged.shape[1] - length,
        forwards=plug.stats.forwards - before + 1,
        identical=identical,
        output=plugged[0, length:].tolist(),
        store_seconds=seconds,
        store_forwards=forwards,
    )


def _table(name: str, dtype: str, results: list[Comparison]) -> Table:
    title = f"model.generate without and with the plug\n{name}, {dtype}, greedy"
    title = f"{title}, repetition penalty {PENALTY}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("prompt", max_width=17, no_wrap=True)
    columns = ["new", "plain\ntok/s", "plug\ntok/s", "ratio", "accept\nlength"]
    if any(result.store_forwards for result in results):
        columns += ["with\nstore", "accept\nlength"]
    for column in columns:
        table.add_column(column, justify="right", min_width=len(max(column.split(), key=len)))
    table.add_column("output", no_wrap=True)
    total = Comparison(
        "all",
        sum(result.plain_seconds for result in results),
        sum(result.plug_seconds for result in results),
        sum(result.tokens for result in results),
        sum(result.forwards for result in results),
        all(result.identical for result in results),
        [],
        store_seconds=sum(result.store_seconds for result in results),
        store_forwards=sum(result.store_forwards for result in results),
    )
    for result in [*results, total]:
        if result is total:
            table.add_section()
        with_store = []
        if result.store_forwards:
            with_store = [
                f"{result.plain_seconds / result.store_seconds:.2f}x",
                f"{result.tokens / result.store_forwards:.2f}",
            ]
        table.add_row(
            result.prompt,
            f"{result.tokens}",
            f"{result.tokens / result.plain_seconds:.0f}",
            f"{result.tokens / result.plug_seconds:.0f}",
            f"{result.plain_seconds / result.plug_seconds:.2f}x",
            f"{result.tokens / result.forwards:.2f}",
            *with_store,
            "identical" if result.identical else "[red]DIFFERENT[/red]",
        )
    return table


def _coloured(tokenizer: Any, result: Comparison) -> Text:
    """The text of one answer; drafted tokens in the colour of who drafted them."""
    text = Text.assemble("\nTokens accepted from ", ("context", STYLES["context"]), ", ")
    text.append("recycling", STYLES["recycling"])
    text.append(", ")
    text.append("both", STYLES["both"])
    text.append(f"; the rest is the model's own. Prompt: {result.prompt}\n\n")
    styles = ["", *STYLES.values()]
    written = ""
    for place, origin in enumerate(result.origins, start=1):
        # decode up to here, not token by token: a character may span tokens
        whole = tokenizer.decode(result.output[:place])
        if not whole.endswith("�"):
            text.append(whole[len(written) :], styles[origin & 3])
            written = whole
    return text
