"""The `specplug` command. Heavy imports wait until a command runs, so that --help is instant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from hf_specplug import __version__

app = typer.Typer(
    help="Model-free tree drafting for transformers' model.generate: the same output, faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example: specplug demo --model ./my-model --prompt 'Write a haiku about trees.'",
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"hf-specplug {__version__}")
        raise typer.Exit


@contextmanager
def _friendly(command: str) -> Iterator[None]:
    """Errors as one line, and exit code 1."""
    from hf_specplug.errors import SpecPlugError

    try:
        yield
    except (SpecPlugError, OSError) as error:
        typer.echo(f"specplug {command}: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def _resumable(command: str) -> Iterator[None]:
    """The same, and exit code 130 if interrupted."""
    try:
        with _friendly(command):
            yield
    except KeyboardInterrupt as error:
        typer.echo(f"specplug {command}: interrupted; the same command goes on", err=True)
        raise typer.Exit(130) from error


@app.command(epilog="Example: specplug demo --model ./my-model --prompt 'Explain recursion.'")
def demo(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a causal LM (built in if not given).")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to ask; may be repeated (a handful if not given)."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens per prompt.")] = 192,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    color: Annotated[bool, typer.Option(help="Colour the text by drafter.")] = True,
    store: Annotated[
        bool, typer.Option(help="Also with a datastore of Python's standard library.")
    ] = True,
) -> None:
    """Generate plainly and with the plug, in turn, and compare: speed, forward passes, output."""
    from hf_specplug import demo as module

    with _friendly("demo"):
        identical = module.run(model, prompt, tokens, dtype, threads, color, store)
    if not identical and dtype == "float32":
        typer.echo("specplug demo: the outputs differ, which is a bug; please report it", err=True)
        raise typer.Exit(1)


@app.command(
    epilog="Example: specplug record --model ./my-model --texts prompts.jsonl --out my.safetensors"
)
def record(
    model: Annotated[str, typer.Option(help="Folder or Hub name of a causal LM.")],
    texts: Annotated[
        str,
        typer.Option(
            help='JSON lines with "prompt", and optionally "task" and "response" (without one the '
            "model answers itself)."
        ),
    ],
    out: Annotated[str, typer.Option(help="The recording; continued if it is there.")],
    tokens: Annotated[int, typer.Option(min=2, help="Of an answer at most.")] = 512,
    per_task: Annotated[int, typer.Option(min=0, help="Texts per task at most; 0: all.")] = 0,
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
    states: Annotated[
        bool, typer.Option("--states", help="Also hidden states, to replay dense retrieval.")
    ] = False,
) -> None:
    """Write down what a model finds likely at every token of some texts, to be replayed."""
    from hf_specplug import record as module

    with _friendly("record"):
        made = module.run(model, texts, out, tokens, per_task, device, states)
    typer.echo(f"{out}: {len(made)} texts, {made.answer_tokens} tokens of answers")


@app.command(
    epilog="Example: specplug simulate my.safetensors --nodes auto,16,32 --cost h200-graph"
)
def simulate(
    recording: Annotated[str, typer.Argument(help="A file that `specplug record` wrote.")],
    drafters: Annotated[str, typer.Option(help="Names, with commas.")] = "context,recycling,stand",
    datastore: Annotated[
        list[str] | None, typer.Option(help="Also draft from this store; may be repeated.")
    ] = None,
    nodes: Annotated[
        str, typer.Option(help='Tokens per forward pass to compare; "auto" needs --cost.')
    ] = "8,16,32,64",
    cost: Annotated[
        str | None,
        typer.Option(
            help="h200-graph, h200-eager, cpu-2core, cpu-2core-bf16, or a JSON file of "
            "milliseconds by width."
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these, with commas.")] = None,
    leave_one_out: Annotated[
        bool, typer.Option(help="Also without each drafter in turn, and with each alone.")
    ] = False,
    published: Annotated[
        str | None, typer.Option(help="Also as a paper drafts: aded, rasd, stand, token-recycling.")
    ] = None,
    calibration: Annotated[bool, typer.Option(help="Print predicted against accepted.")] = False,
    out: Annotated[str | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """Replay a recording through drafters, without the model: accept length, cost, calibration."""
    from hf_specplug import workbench

    with _friendly("simulate"):
        workbench.run(
            recording,
            drafters,
            datastore or (),
            nodes,
            cost,
            tasks,
            leave_one_out,
            published,
            calibration,
            out,
        )


@app.command(
    "tune-tree", epilog="Example: specplug tune-tree my.safetensors --keep 80 --out tree.json"
)
def tune_tree(
    recording: Annotated[str, typer.Argument(help="A file that `specplug record` wrote.")],
    drafters: Annotated[
        str, typer.Option(help="Names, with commas, of the best-first search to compare with.")
    ] = "stand",
    start: Annotated[int, typer.Option(min=1, max=1023, help="Nodes of the first tree.")] = 625,
    keep: Annotated[int, typer.Option(min=1, max=1023, help="Nodes of the tuned tree.")] = 80,
    out: Annotated[str | None, typer.Option(help="Write the tree as JSON.")] = None,
) -> None:
    """Cut the static tree that STAND's paper drafts in to the nodes that a recording pays for."""
    from hf_specplug import tune

    with _friendly("tune-tree"):
        tune.run(recording, drafters, start, keep, out)


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
    with _resumable("build"):
        from hf_specplug import stores

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
    with _resumable("append"):
        from hf_specplug import stores

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
    with _resumable("merge"):
        from hf_specplug import stores

        stores.show(stores.describe(stores.merge(path, memory)), "table")


@app.command(epilog="Example: specplug info my.store --format json")
def info(path: StorePath, form: Form = "table") -> None:
    """Show what a datastore holds."""
    with _resumable("info"):
        from hf_specplug import stores

        stores.show(stores.describe(stores.opened(path)), form)


@app.command(epilog="Example: specplug check my.store --deep")
def check(
    path: StorePath,
    deep: Annotated[bool, typer.Option(help="Also every number that it holds.")] = False,
) -> None:
    """Compare a datastore with its checksums; exit code 1 if something has changed."""
    with _resumable("check"):
        from hf_specplug import stores

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
    with _resumable("query"):
        from hf_specplug import stores

        stores.query(path, text, nodes, tokenizer, form)


bench = typer.Typer(
    help="Speed on this machine, side by side with transformers' own.",
    no_args_is_help=True,
    epilog="Example: specplug bench engine --model ./my-model --texts answers.jsonl",
)
app.add_typer(bench, name="bench")


@bench.command(
    epilog="Example: specplug bench engine --model ./my-model --texts answers.jsonl "
    "--dtype bfloat16 --out engine.json"
)
def engine(
    model: Annotated[str, typer.Option(help="Folder or Hub name of a causal LM.")],
    texts: Annotated[str, typer.Option(help='JSON lines with "task", "prompt" and "response".')],
    per_task: Annotated[int, typer.Option(min=1, help="Answers per task.")] = 2,
    tokens: Annotated[int, typer.Option(min=2, help="Of an answer at most.")] = 160,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    contexts: Annotated[
        str, typer.Option(help="Tokens before a timed forward pass, with commas.")
    ] = "512,4096",
    compiled: Annotated[
        bool, typer.Option(help="Also with torch.compile (minutes, once per width).")
    ] = False,
    out: Annotated[str | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """transformers' eager, prompt lookup and static decoding, and both engines of the plug."""
    from hf_specplug import bench as module

    with _friendly("bench engine"):
        module.engine(model, texts, per_task, tokens, dtype, contexts, compiled, out)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
