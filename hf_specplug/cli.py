"""The `specplug` command. Heavy imports wait until a command runs, so that --help is instant."""

from __future__ import annotations

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
) -> None:
    """Generate plainly and with the plug, in turn, and compare: speed, forward passes, output."""
    from hf_specplug import demo as module
    from hf_specplug.errors import SpecPlugError

    try:
        identical = module.run(model, prompt, tokens, dtype, threads, color)
    except (SpecPlugError, OSError) as error:
        typer.echo(f"specplug demo: {error}", err=True)
        raise typer.Exit(1) from error
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
) -> None:
    """Write down what a model finds likely at every token of some texts, to be replayed."""
    from hf_specplug import record as module
    from hf_specplug.errors import SpecPlugError

    try:
        made = module.run(model, texts, out, tokens, per_task, device)
    except (SpecPlugError, OSError) as error:
        typer.echo(f"specplug record: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{out}: {len(made)} texts, {made.answer_tokens} tokens of answers")


@app.command(
    epilog="Example: specplug simulate my.safetensors --nodes auto,16,32 --cost h200-graph"
)
def simulate(
    recording: Annotated[str, typer.Argument(help="A file that `specplug record` wrote.")],
    drafters: Annotated[str, typer.Option(help="Names, with commas.")] = "context,recycling",
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
        str | None, typer.Option(help="Also as a paper drafts: rasd, token-recycling.")
    ] = None,
    calibration: Annotated[bool, typer.Option(help="Print predicted against accepted.")] = False,
    out: Annotated[str | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """Replay a recording through drafters, without the model: accept length, cost, calibration."""
    from hf_specplug import workbench
    from hf_specplug.errors import SpecPlugError

    try:
        workbench.run(
            recording, drafters, nodes, cost, tasks, leave_one_out, published, calibration, out
        )
    except (SpecPlugError, OSError) as error:
        typer.echo(f"specplug simulate: {error}", err=True)
        raise typer.Exit(1) from error


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
    from hf_specplug.errors import SpecPlugError

    try:
        module.engine(model, texts, per_task, tokens, dtype, contexts, compiled, out)
    except (SpecPlugError, OSError) as error:
        typer.echo(f"specplug bench engine: {error}", err=True)
        raise typer.Exit(1) from error


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
