"""`specplug bench`: speed on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_specplug.cli.app import app, friendly, resumable

_EXAMPLE = "Example: specplug bench --model ./my-model --prompts my.jsonl --html report.html"

bench = typer.Typer(epilog=_EXAMPLE)
app.add_typer(bench, name="bench")


@bench.callback(invoke_without_command=True, epilog=_EXAMPLE)
def compare(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a causal LM (built in if not given).")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help='JSON lines with "prompt" or "turns", and "task", as Spec-Bench\'s (a dozen built '
            "in if not given)."
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="With commas: plain, prompt-lookup[:TOKENS], static, "
            "specplug[:-DRAFTER][:+DRAFTER][:nodes=N][:pack=no][:static][:published=PAPER]."
        ),
    ] = "plain,prompt-lookup,static,specplug",
    datastore: Annotated[
        list[str] | None, typer.Option(help="What specplug drafts from, too; may be repeated.")
    ] = None,
    per_task: Annotated[
        int, typer.Option(min=0, help="Prompts of each task, spread over the file; 0: all.")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=2, help="Of an answer at most.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    temperature: Annotated[
        float, typer.Option(min=0.0, help="To sample, with the same seeds; 0: greedy.")
    ] = 0.0,
    out: Annotated[
        str | None,
        typer.Option(help="Write all figures as JSON after every prompt; goes on if it is there."),
    ] = None,
    html: Annotated[
        str | None, typer.Option(help='Draw a report (needs "hf-specplug[plot]").')
    ] = None,
) -> None:
    """Plain decoding, prompt lookup, static cache and the plug on your prompts, side by side."""
    if context.invoked_subcommand is not None:
        return
    with resumable("bench", again=out is not None):
        from hf_specplug.bench import compare as module

        module.run(
            model,
            prompts,
            methods,
            datastore or (),
            per_task,
            tokens,
            dtype,
            temperature,
            out,
            html,
        )


@bench.command(epilog="Example: specplug bench report bench.json report.html")
def report(
    results: Annotated[str, typer.Argument(help="What `specplug bench --out` wrote.")],
    html: Annotated[str, typer.Argument(help="The report to draw.")],
) -> None:
    """Draw the report of a run again, be it finished or not."""
    with friendly("bench report"):
        from hf_specplug.bench import page
        from hf_specplug.bench import results as module

        page.write(html, module.read(results))
        typer.echo(f"{html}: written")


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
    from hf_specplug.bench import engine as module

    with friendly("bench engine"):
        module.engine(model, texts, per_task, tokens, dtype, contexts, compiled, out)
