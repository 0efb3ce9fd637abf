"""The datastore commands as typer declares them: build, append, merge, info, check, query."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hf_specplug.cli.app import app, resumable

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS",
        help="Text, code, .jsonl or .parquet files (also .gz and .zst), folders, globs, - for "
        "standard input, hf://DATASET[:SPLIT], one recipe (.toml), or one datastore, whose texts "
        "are used.",
        show_default=False,
    ),
]
TextField = Annotated[
    str, typer.Option(help="Field of .jsonl, .parquet and dataset rows that holds the text.")
]
Workers = Annotated[int, typer.Option(min=0, help="Threads that tokenize; 0: all cores.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory to use at most, such as 8G.", show_default="half of what is free"),
]
OnError = Annotated[str, typer.Option(help="stop or skip, at a file or line that cannot be read.")]
Given = Annotated[
    bool, typer.Option("--given", help="Keep each document whole, as one phrase (kind phrases).")
]
FromModel = Annotated[
    str | None,
    typer.Option(
        "--from-model-outputs",
        metavar="MODEL",
        help="Store this model's greedy answers. The corpus holds the prompts: JSON lines with "
        '"prompt".',
    ),
]
LeaveOut = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Leave out every document that contains one of these strings: one per line, a JSON "
        'list (.json), or prompts (.jsonl with "prompt" or "turns").',
    ),
]
Form = Annotated[str, typer.Option("--format", help="table or json.")]
Folder = Annotated[str, typer.Argument(metavar="PATH", help="Folder of the datastore.")]


class _BuildCommand(TyperCommand):
    """Lists the kinds in the help of `--kind`: importing them must wait until they are needed."""

    def get_params(self, ctx: Any) -> list[Any]:
        from hf_specplug.datastore.kinds.registry import DEFAULT_KIND, registry

        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.name == "kind":
                kinds = [f"{name} ({kind.summary})" for name, kind in registry().items()]
                param.help = f"{'; '.join(kinds)}. The default is {DEFAULT_KIND}."
        return params


@app.command(
    cls=_BuildCommand,
    epilog="Example: specplug build my.store --tokenizer ./my-model src/ chats.jsonl",
)
def build(
    out: Annotated[str, typer.Argument(help="Folder of the new datastore.")],
    corpus: Sources,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hub name of the model's tokenizer.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of the datastore.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub name of the model to take hidden states of (kind dense)."),
    ] = None,
    layer: Annotated[
        int,
        typer.Option(min=-1, help="Layer of the hidden states, from 0; -1: the last (kind dense)."),
    ] = -1,
    index: Annotated[
        str, typer.Option(help="auto, or a FAISS index factory string (kind dense).")
    ] = "auto",
    text_field: TextField = "text",
    dedup: Annotated[bool, typer.Option(help="Leave out repeated documents.")] = False,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of the corpus to use at most; 0: all.")
    ] = 0,
    workers: Workers = 0,
    memory: Memory = None,
    on_error: OnError = "stop",
    engine: Annotated[
        str, typer.Option(help="Where to tokenize and index: local, or ray for a cluster.")
    ] = "local",
    given: Given = False,
    from_model_outputs: FromModel = None,
    leave_out: LeaveOut = None,
) -> None:
    """Build a datastore of texts to draft from, or continue an interrupted build."""
    with resumable("build"):
        from hf_specplug.cli import run_build
        from hf_specplug.cli.datastore_views import show
        from hf_specplug.datastore.building.options import BuildOptions

        options = BuildOptions(
            kind=kind,
            tokenizer=tokenizer,
            text_field=text_field,
            dedup=dedup,
            max_tokens=max_tokens,
            shard_tokens=run_build.shard_tokens(memory),
            given=given,
            engine=engine,
            workers=workers,
            from_model_outputs=from_model_outputs,
            model=model,
            layer=layer,
            index=index,
            leave_out=leave_out,
        )
        show(run_build.build(out, corpus, options, on_error))


@app.command(epilog="Example: specplug append my.store more-chats.jsonl")
def append(
    path: Folder,
    corpus: Sources,
    text_field: TextField = "text",
    dedup: Annotated[bool, typer.Option(help="Leave out repeated new documents.")] = False,
    workers: Workers = 0,
    memory: Memory = None,
    on_error: OnError = "stop",
    given: Given = False,
    from_model_outputs: FromModel = None,
    leave_out: LeaveOut = None,
) -> None:
    """Add documents to a datastore as new shards. Readers see the old or the new state."""
    with resumable("append"):
        from hf_specplug.cli import run_build
        from hf_specplug.cli.datastore_views import show
        from hf_specplug.datastore.building.options import BuildOptions

        options = BuildOptions(
            append=True,
            text_field=text_field,
            dedup=dedup,
            shard_tokens=run_build.shard_tokens(memory),
            given=given,
            workers=workers,
            from_model_outputs=from_model_outputs,
            leave_out=leave_out,
        )
        show(run_build.build(path, corpus, options, on_error))


@app.command(epilog="Example: specplug merge my.store")
def merge(
    path: Folder,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory to use at most, such as 8G.", show_default="no limit"),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="A datastore that holds the whole corpus: phrases are counted again, over its "
            "texts (kinds phrases and ngram).",
        ),
    ] = None,
) -> None:
    """Join the shards of a datastore, which makes it faster. Readers are not disturbed."""
    with resumable("merge"):
        from hf_specplug.cli import run_build
        from hf_specplug.cli.datastore_views import show

        show(run_build.merge(path, memory, corpus))


@app.command(epilog="Example: specplug info my.store --format json")
def info(path: Folder, form: Form = "table") -> None:
    """Show what a datastore holds."""
    with resumable("info"):
        from hf_specplug.cli.datastore_views import show
        from hf_specplug.datastore.store import Datastore

        show(Datastore(path), form)


@app.command(epilog="Example: specplug check my.store --deep")
def check(
    path: Folder,
    deep: Annotated[bool, typer.Option(help="Also check every value.")] = False,
) -> None:
    """Compare the checksums of a datastore. Exit code 1 if a file has changed."""
    with resumable("check"):
        from hf_specplug.datastore.store import Datastore

        Datastore(path).check(deep)
        typer.echo(f"{path}: unchanged since it was written")


@app.command(epilog="Example: specplug query my.store 'import numpy as'")
def query(
    path: Folder,
    text: Annotated[str, typer.Argument(help="Text to continue.")],
    nodes: Annotated[int, typer.Option(min=1, max=1024, help="Nodes of the tree.")] = 16,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer, if it has moved since the datastore was built.")
    ] = None,
    form: Form = "table",
) -> None:
    """Show how a datastore continues a text."""
    with resumable("query"):
        from hf_specplug.cli import datastore_views
        from hf_specplug.datastore.store import Datastore

        datastore_views.query(Datastore(path), text, nodes, tokenizer, form)
