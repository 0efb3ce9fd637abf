"""The datastore commands: build, append, merge, info, check, query."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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
from rich.table import Table
from rich.tree import Tree

from hf_specplug.answers import SHARD, Answering, Prompts
from hf_specplug.datastore import faiss_index
from hf_specplug.datastore.building import build as building
from hf_specplug.datastore.building import executors
from hf_specplug.datastore.building import recipe as recipes
from hf_specplug.datastore.building.embedding import SHARD as EMBEDDED
from hf_specplug.datastore.building.embedding import Embedding
from hf_specplug.datastore.building.executors import LOCAL
from hf_specplug.datastore.building.store_corpus import StoreCorpus
from hf_specplug.datastore.dense import DenseIndex
from hf_specplug.datastore.manifest import NAME
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafters.store_drafter import reader
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import CorpusError, OptionError
from hf_specplug.hf import loading
from hf_specplug.hf.hidden_states import LAST
from hf_specplug.verify.packed import available_memory

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def build(
    out: str,
    corpus: list[str],
    tokenizer: str | None,
    text_field: str,
    dedup: bool,
    max_tokens: int,
    workers: int,
    memory: str | None,
    on_error: str,
    append: bool,
    engine: str = LOCAL,
    kind: str | None = None,
    given: bool = False,
    from_model_outputs: str | None = None,
    model: str | None = None,
    layer: int = LAST,
    index: str = faiss_index.AUTO,
) -> Datastore:
    """Build, continue or append to a store; the arguments are those of the commands.

    Raises:
        StoreError, CorpusError, OptionError: the message says what is wrong.
    """
    if on_error not in ("stop", "skip"):
        raise OptionError(f"--on-error is stop or skip, not {on_error!r}")
    if from_model_outputs and engine != LOCAL:
        raise OptionError("a model answers in this process: --from-model-outputs has no --engine")
    if workers:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    recipe = recipes.load(corpus, text_field, max_tokens, dedup)
    tokenizer = tokenizer or model or recipe.tokenizer or from_model_outputs
    if append:
        known = Datastore(out).manifest
        kind, tokenizer = known.kind, tokenizer or known.tokenizer["name"]
        if kind == DenseIndex.kind:
            model, layer = known.settings["model"]["name"], known.settings["layer"]
            index = known.settings["index"]
    kind = kind or recipe.kind
    tokenizer = _refuse_missing(kind, model, tokenizer)
    console = Console(stderr=True)
    skipped: list[CorpusError] = []

    def report(error: CorpusError) -> None:
        if on_error == "stop":
            raise error
        skipped.append(error)
        console.print(f"skipped: {error}", style="yellow", highlight=False)

    texts, most = recipe.corpus, _shard_tokens(memory)
    if from_model_outputs is not None:
        texts, most = Prompts(texts.files, model=from_model_outputs), min(most, SHARD)
    made = loading.tokenizer(tokenizer)
    if isinstance(texts, StoreCorpus):
        texts.store.refuse_other(made)
    embedding = None
    settings: dict[str, Any] = {}
    if model is not None:
        embedding = _embedding(out, model, layer, index, engine)
        most, settings = min(most, EMBEDDED), embedding.settings(index)
        with console.status("the model reads a sample of the corpus"):
            embedding.fit(texts, made, recipe.max_tokens)
        if engine != LOCAL:  # workers have their own models
            embedding.release()
    plan = building.Plan(most, recipe.max_tokens, recipe.dedup, kind, given, settings)
    where = Answering(from_model_outputs) if from_model_outputs else executors.make(engine)
    with _progress(console, "documents", texts.count()) as progress:
        building.build(Path(out), texts, made, plan, report, progress, append, where, embedding)
    if skipped:
        console.print(f"{len(skipped)} places in the corpus were skipped", style="yellow")
    return Datastore(out)


def _refuse_missing(kind: str, model: str | None, tokenizer: str | None) -> str:
    """The tokenizer's name; raise OptionError unless what a kind of store is made with is known."""
    if kind == DenseIndex.kind and model is None:
        raise OptionError("a dense store is made of a model's states: --model NAME_OR_PATH")
    if kind != DenseIndex.kind and model is not None:
        raise OptionError("--model is for --kind dense; a tokenizer is given as --tokenizer")
    if tokenizer is None:
        raise OptionError("a store needs the model's tokenizer: --tokenizer NAME_OR_PATH")
    return tokenizer


def _embedding(out: str, model: str, layer: int, index: str, engine: str) -> Embedding:
    """What makes a dense store; it goes on with the transform of what is there."""
    transform = None
    if (Path(out) / NAME).exists():
        known = Datastore(out)
        if known.shards and known.manifest.kind == DenseIndex.kind:
            transform = known.shards[0].transform
    embedding = Embedding(model, layer, transform, alone=engine == LOCAL)
    faiss_index.refuse(embedding.dims, index)
    return embedding


def _shard_tokens(memory: str | None) -> int:
    if memory is None:
        available = int(available_memory() / 2)
        return min(building.SHARD, building.shard_tokens_for(available or 1 << 30))
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?", memory.strip(), re.IGNORECASE)
    if match is None:
        raise OptionError(f"--memory is a size such as 500M or 8G, not {memory!r}")
    return building.shard_tokens_for(int(float(match[1]) * _UNITS[match[2].upper()]))


class _Rate(ProgressColumn):
    """Tokens so far, and per second."""

    def render(self, task: Task) -> str:  # type: ignore[override]
        tokens = task.fields["tokens"]
        rate = tokens / max(task.elapsed or 0.0, 1e-9)
        return f"{tokens:,} tokens, {rate:,.0f}/s"


@contextmanager
def _progress(console: Console, what: str, total: int | None = None) -> Iterator[building.Progress]:
    columns = SpinnerColumn(), MofNCompleteColumn(), TextColumn(what), _Rate()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, *times, console=console, transient=True) as shown:
        task = shown.add_task(what, total=total, tokens=0)
        state = {"tokens": 0}

        def progress(documents: int, tokens: int) -> None:
            state["tokens"] += tokens
            shown.update(task, advance=documents, tokens=state["tokens"])

        yield progress


def merge(path: str, memory: str | None) -> Datastore:
    """Join the shards of a store."""
    most = building.shard_tokens_for(1 << 62) if memory is None else _shard_tokens(memory)
    with _progress(Console(stderr=True), "shards") as progress:
        building.merge(Path(path), most, progress)
    return Datastore(path)


def describe(store: Datastore) -> dict[str, Any]:
    """What `specplug info` shows."""
    return {
        "path": str(store.path),
        "kind": store.manifest.kind,
        "tokens": len(store),
        "documents": store.documents,
        "shards": len(store.shards),
        "bytes": store.bytes,
        "vocabulary": store.manifest.vocab_size,
        "tokenizer": store.manifest.tokenizer["name"],
        "tokenizer hash": store.manifest.tokenizer["hash"],
        **({} if not store.shards else store.shards[-1].about()),
        "state": "unfinished: repeat the build" if store.manifest.build else "complete",
    }


def opened(path: str) -> Datastore:
    """A store as it is now."""
    return Datastore(path)


def show(figures: dict[str, Any], form: str) -> None:
    """Print figures as a table or as JSON."""
    if form not in ("table", "json"):
        raise OptionError(f"--format is table or json, not {form!r}")
    if form == "json":
        print(json.dumps(figures))
        return
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console(highlight=False).print(table)


def query(path: str, text: str, nodes: int, tokenizer: str | None, form: str) -> None:
    """Print how a store continues a text."""
    store = Datastore(path)
    made = loading.tokenizer(tokenizer or store.manifest.tokenizer["name"])
    store.refuse_other(made)
    ids = made(text, add_special_tokens=False)["input_ids"]
    vocab = store.manifest.vocab_size
    drafter = reader(store.manifest.kind)
    drafter.add(store)
    search = TreeSearch([drafter], Mixer([drafter.name]), vocab, _raise)
    context = Context(np.array(ids, np.int32), vocab)
    drafter.begin(context)
    if "hidden" in drafter.needs and len(ids) > 1:
        made_of = store.manifest.settings
        state = Embedding(tokenizer or made_of["model"]["name"], made_of["layer"]).state
        known, last = context.tokens[:-1], context.tokens[-1:]
        drafter.observe(Step.of_text(known, 0, [], last, None, state(known)))
    drawn = search.grow(context.last, nodes, nodes)
    rows = [
        {"parent": int(parent), "text": made.decode([int(token)]), "probability": float(prob)}
        for parent, token, prob in zip(drawn.parents, drawn.tokens, drawn.probs, strict=True)
    ]
    if form == "json":
        print(json.dumps(rows))
        return
    root = Tree(repr(text)[-70:])
    branches: list[Tree] = []
    for row in rows:
        parent = root if row["parent"] < 0 else branches[row["parent"]]
        branches.append(parent.add(f"{row['text']!r}  {100 * row['probability']:.0f} %"))
    console = Console(highlight=False, markup=False)
    console.print(root if rows else f"nothing in {path} continues {text!r}")


def _raise(drafter: Any, error: Exception) -> None:
    raise error
