"""What `specplug info` and `query` print: figures of a datastore, and how it continues a text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafters.store_drafter import new_readers
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError


def describe(store: Datastore) -> dict[str, Any]:
    """The figures of a datastore by name."""
    return {
        "path": str(store.path),
        "kind": store.manifest.kind,
        "tokens": len(store),
        "documents": store.documents,
        "documents left out": store.manifest.left_out,
        "shards": len(store.shards),
        "bytes": store.bytes,
        "vocabulary": store.manifest.vocab_size,
        "tokenizer": store.manifest.tokenizer["name"],
        "tokenizer hash": store.manifest.tokenizer["hash"],
        **({} if not store.shards else store.shards[-1].about()),
        "state": "unfinished: repeat the build" if store.manifest.build else "complete",
    }


def show(store: Datastore, form: str = "table") -> None:
    """Print the figures of a datastore as a table or as JSON."""
    figures = describe(store)
    if not _is_json(form):
        table = Table(show_header=False)
        for name, value in figures.items():
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
        Console(highlight=False).print(table)
    else:
        print(json.dumps(figures))


def query(store: Datastore, text: str, nodes: int, tokenizer: str | None, form: str) -> None:
    """Print how a datastore continues a text, as a tree or as JSON.

    Args:
        store: the datastore.
        text: the text to continue.
        nodes: size of the tree.
        tokenizer: name of the tokenizer (or model), if it has moved since the build.
        form: "table" or "json".
    """
    as_json = _is_json(form)
    rows = _continuations(store, text, nodes, tokenizer)
    if as_json:
        print(json.dumps(rows))
        return
    root = Tree(repr(text)[-70:])
    branches: list[Tree] = []
    for row in rows:
        parent = root if row["parent"] < 0 else branches[row["parent"]]
        branches.append(parent.add(f"{row['text']!r}  {100 * row['probability']:.0f} %"))
    console = Console(highlight=False, markup=False)
    console.print(root if rows else f"nothing in {store.path} continues {text!r}")


def _continuations(
    store: Datastore, text: str, nodes: int, tokenizer_name: str | None
) -> list[dict[str, Any]]:
    """The draft tree after a text: "parent" (-1: the text), "text" and "probability" of a node."""
    from hf_specplug.hf import loading

    tokenizer = loading.tokenizer(tokenizer_name or store.manifest.tokenizer["name"])
    store = store.with_tokenizer(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    vocab = store.manifest.vocab_size
    drafters = new_readers(store)
    search = TreeSearch(drafters, Mixer([drafter.name for drafter in drafters]), vocab, _raise)
    context = Context(np.array(ids, np.int32), vocab)
    for drafter in drafters:
        drafter.begin(context)
    if any("hidden" in drafter.needs for drafter in drafters) and len(ids) > 1:
        from hf_specplug.datastore.building.embedding import Embedding

        settings = store.manifest.settings
        embedding = Embedding(tokenizer_name or settings["model"]["name"], settings["layer"])
        known, last = context.tokens[:-1], context.tokens[-1:]
        step = Step.of_text(known, 0, [], last, None, embedding.state(known))
        for drafter in drafters:
            drafter.observe(step)
    tree = search.grow(context.last, nodes, nodes)
    return [
        {"parent": int(parent), "text": tokenizer.decode([int(token)]), "probability": float(prob)}
        for parent, token, prob in zip(tree.parents, tree.tokens, tree.probs, strict=True)
    ]


def _is_json(form: str) -> bool:
    if form not in ("table", "json"):
        raise OptionError(f"--format is table or json, not {form!r}")
    return form == "json"


def _raise(drafter: Any, error: Exception) -> None:
    raise error
