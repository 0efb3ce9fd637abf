"""Commands for datastores: build, append, merge, info, check, query."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_specplug.cli.app import app, resumable

Corpora = Annotated[
    list[str],
    typer.Argument(
        help="Text, code, .jsonl or .parquet files (.gz, .zst), folders, globs, - for standard "
        "input, hf://DATASET[:SPLIT], one recipe (.toml), or one datastore, for its texts.",
        show_default=False,
    ),
]
TextField = Annotated[str, typer.Option(help="Of jsonl, parquet and dataset rows.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that tokenise; 0: all cores.")]
Memory = Annotated[
    str | None, typer.Option(help="To be used at most, such as 8G (half of what is free).")
]
OnError = Annotated[str, typer.Option(help="stop or skip, at a file or line that is unreadable.")]
Given = Annotated[
    bool, typer.Option("--given", help="Each document is a phrase as it is (kind phrases).")
]
FromModel = Annotated[
    str | None,
    typer.Option(
        "--from-model-outputs",
        metavar="MODEL",
        help='Of its greedy answers; the corpus is what it is asked, JSON lines with "prompt".',
    ),
]
Form = Annotated[str, typer.Option("--format", help="table or json.")]
StorePath = Annotated[str, typer.Argument(help="Folder of a datastore.")]


@app.command(epilog="Example: specplug build my.store --tokenizer ./my-model src/ chats.jsonl")
def build(
    out: Annotated[str, typer.Argument(help="Folder of the new datastore.")],
    corpus: Corpora,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hub name of the model's tokenizer.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="suffix (exact matches of any length; if not given), trigram (what follows two "
            "tokens; small), phrases (long ones that repeat), ngram (the most common five tokens), "
            "dense (what is alike to the model; needs --model)."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose hidden states are indexed (kind dense).")
    ] = None,
    layer: Annotated[
        int, typer.Option(min=-1, help="Of these states, from 0; -1: the last (kind dense).")
    ] = -1,
    index: Annotated[
        str, typer.Option(help="auto, or a FAISS index factory string (kind dense).")
    ] = "auto",
    text_field: TextField = "text",
    dedup: Annotated[bool, typer.Option(help="Leave out documents that were there.")] = False,
    max_tokens: Annotated[int, typer.Option(min=0, help="Of all; 0: no limit.")] = 0,
    workers: Workers = 0,
    memory: Memory = None,
    on_error: OnError = "stop",
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    given: Given = False,
    from_model_outputs: FromModel = None,
) -> None:
    """Build a datastore of texts to draft from; goes on with one that was interrupted."""
    with resumable("build"):
        from hf_specplug.cli import datastores as stores

        store = stores.build(
            out,
            corpus,
            tokenizer,
            text_field,
            dedup,
            max_tokens,
            workers,
            memory,
            on_error,
            append=False,
            engine=engine,
            kind=kind,
            given=given,
            from_model_outputs=from_model_outputs,
            model=model,
            layer=layer,
            index=index,
        )
        stores.show(stores.describe(store), "table")


@app.command(epilog="Example: specplug append my.store more-chats.jsonl")
def append(
    path: StorePath,
    corpus: Corpora,
    text_field: TextField = "text",
    dedup: Annotated[bool, typer.Option(help="Leave out repeated new documents.")] = False,
    workers: Workers = 0,
    memory: Memory = None,
    on_error: OnError = "stop",
    given: Given = False,
    from_model_outputs: FromModel = None,
) -> None:
    """Add documents to a datastore, as new shards; readers see the old or the new state."""
    with resumable("append"):
        from hf_specplug.cli import datastores as stores

        store = stores.build(
            path,
            corpus,
            None,
            text_field,
            dedup,
            0,
            workers,
            memory,
            on_error,
            append=True,
            given=given,
            from_model_outputs=from_model_outputs,
        )
        stores.show(stores.describe(store), "table")


@app.command(epilog="Example: specplug merge my.store")
def merge(path: StorePath, memory: Memory = None) -> None:
    """Join the shards of a datastore, which makes it faster; readers are not disturbed."""
    with resumable("merge"):
        from hf_specplug.cli import datastores as stores

        stores.show(stores.describe(stores.merge(path, memory)), "table")


@app.command(epilog="Example: specplug info my.store --format json")
def info(path: StorePath, form: Form = "table") -> None:
    """Show what a datastore holds."""
    with resumable("info"):
        from hf_specplug.cli import datastores as stores

        stores.show(stores.describe(stores.opened(path)), form)


@app.command(epilog="Example: specplug check my.store --deep")
def check(
    path: StorePath,
    deep: Annotated[bool, typer.Option(help="Also every number that it holds.")] = False,
) -> None:
    """Compare a datastore with its checksums; exit code 1 if something has changed."""
    with resumable("check"):
        from hf_specplug.cli import datastores as stores

        stores.opened(path).check(deep)
        typer.echo(f"{path}: as it was written")


@app.command(epilog="Example: specplug query my.store 'import numpy as'")
def query(
    path: StorePath,
    text: Annotated[str, typer.Argument(help="What to continue.")],
    nodes: Annotated[int, typer.Option(min=1, max=1024, help="Of the tree.")] = 16,
    tokenizer: Annotated[
        str | None, typer.Option(help="If it is elsewhere than when the store was built.")
    ] = None,
    form: Form = "table",
) -> None:
    """Show how a datastore continues a text."""
    with resumable("query"):
        from hf_specplug.cli import datastores as stores

        stores.query(path, text, nodes, tokenizer, form)
