"""What `specplug build`, `append` and `merge` run: options from the command line, and progress."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hf_specplug.datastore.building import job
from hf_specplug.datastore.building import merge as merging
from hf_specplug.datastore.building.answers import Answer
from hf_specplug.datastore.building.options import (
    DEFAULT_SHARD_TOKENS,
    BuildOptions,
    shard_tokens_for,
)
from hf_specplug.datastore.building.shard_writer import Progress as Report
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError, OptionError
from hf_specplug.hf import loading
from hf_specplug.hf.prompts import greedy_answer, prompt_ids, read_prompts, remaining_tokens
from hf_specplug.replay.record import load_attached
from hf_specplug.verify.packed import available_memory

MAX_ANSWER_TOKENS = 512
"""Tokens of a model's answer, with --from-model-outputs."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _prompts(path: str) -> Iterator[str]:
    """The prompts of a file, as `specplug record` reads them."""
    for _, line in read_prompts(path):
        yield line["prompt"]


def answering(name: str, max_tokens: int = MAX_ANSWER_TOKENS) -> Answer:
    """Load a model with a plug; return what answers a prompt greedily."""
    model, tokenizer = load_attached(name)

    def answer(text: str) -> list[int]:
        prompt = prompt_ids(tokenizer, text)
        tokens = min(max_tokens, remaining_tokens(model, prompt))
        return greedy_answer(model, prompt, tokens) if prompt and tokens else []

    return answer


LOADERS = job.Loaders(loading.tokenizer, _prompts, answering)


def build(
    folder: str,
    sources: list[str],
    options: BuildOptions,
    on_error: str,
    loaders: job.Loaders = LOADERS,
) -> Datastore:
    """Build, continue or append to a datastore, and show progress on stderr.

    Args:
        folder: folder of the datastore.
        sources: one recipe, one datastore, or files, folders and globs.
        options: see `BuildOptions`.
        on_error: "stop" or "skip" at a file or line that cannot be read.
        loaders: load models and tokenizers.

    Raises:
        StoreError, CorpusError, OptionError, ModelError: the message says what is wrong.
    """
    if on_error not in ("stop", "skip"):
        raise OptionError(f"--on-error is stop or skip, not {on_error!r}")
    console = Console(stderr=True)
    skipped: list[CorpusError] = []

    def report(error: CorpusError) -> None:
        if on_error == "stop":
            raise error
        skipped.append(error)
        console.print(f"skipped: {error}", style="yellow", highlight=False)

    made = job.prepare(Path(folder), sources, options, loaders)
    fitting = "fitting the projection to a sample of the corpus"
    with console.status(fitting) if made.embedding else nullcontext():
        made.setup()
    with _progress(console, "documents", made.corpus.count()) as progress:
        store = made.run(report, progress)
    if skipped:
        console.print(f"{len(skipped)} places in the corpus were skipped", style="yellow")
    return store


def merge(folder: str, memory: str | None, corpus: str | None = None) -> Datastore:
    """Join the shards of a datastore, as large as `memory` allows; see `building.merge`."""
    most = shard_tokens_for(1 << 62) if memory is None else shard_tokens(memory)
    with _progress(Console(stderr=True), "shards") as progress:
        merging.merge(Path(folder), most, progress, None if corpus is None else Path(corpus))
    return Datastore(folder)


def shard_tokens(memory: str | None) -> int:
    """The tokens of a shard for `--memory`, or for half of the available memory.

    Raises:
        OptionError: it is not a size.

    Example:
        >>> shard_tokens("28M")
        1048576
    """
    if memory is None:
        available = int(available_memory() / 2)
        return min(DEFAULT_SHARD_TOKENS, shard_tokens_for(available or 1 << 30))
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?", memory.strip(), re.IGNORECASE)
    if match is None:
        raise OptionError(f"--memory is a size such as 500M or 8G, not {memory!r}")
    return shard_tokens_for(int(float(match[1]) * _UNITS[match[2].upper()]))


class _TokenRate(ProgressColumn):
    """Tokens so far, and tokens per second."""

    def render(self, task: Task) -> str:  # type: ignore[override]
        tokens = task.fields["tokens"]
        rate = tokens / max(task.elapsed or 0.0, 1e-9)
        return f"{tokens:,} tokens, {rate:,.0f}/s"


@contextmanager
def _progress(console: Console, what: str, total: int | None = None) -> Iterator[Report]:
    """A progress bar; yields what advances it."""
    columns = SpinnerColumn(), MofNCompleteColumn(), TextColumn(what), _TokenRate()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, *times, console=console, transient=True) as shown:
        task = shown.add_task(what, total=total, tokens=0)
        done = 0

        def advance(items: int, tokens: int) -> None:
            nonlocal done
            done += tokens
            shown.update(task, advance=items, tokens=done)

        yield advance
