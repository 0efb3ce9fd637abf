"""Commands that measure speed on this machine: bench, bench report, bench engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hf_specplug.bench.methods import DEFAULT, usage
from hf_specplug.cli.app import app, friendly, resumable

if TYPE_CHECKING:
    from hf_specplug.bench.compare import Options

_EXAMPLE = "Example: specplug bench --model ./my-model --prompts my.jsonl --html report.html"

bench = typer.Typer(epilog=_EXAMPLE)
app.add_typer(bench, name="bench")


@bench.callback(invoke_without_command=True, epilog=_EXAMPLE)
def compare(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a causal LM (default: built in).")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help='JSON lines with "prompt" or "turns", and "task", as in Spec-Bench (default: a '
            "dozen, built in)."
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help=f"Any of {usage()}.")] = DEFAULT,
    datastore: Annotated[
        list[str] | None, typer.Option(help="A store that specplug drafts from; may be repeated.")
    ] = None,
    per_task: Annotated[
        int, typer.Option(min=0, help="Prompts of each task, spread over the file; 0: all.")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=2, help="Maximum length of an answer.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of sampling, with the same seeds; 0: greedy.")
    ] = 0.0,
    batch: Annotated[
        str | None,
        typer.Option(help="Compare batches of so many rows, as in 1,4,8, not single answers."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Rows of each prompt in batches (needs --temperature).")
    ] = 1,
    out: Annotated[
        str | None,
        typer.Option(
            help="Write all figures as JSON after every prompt. If the file holds the beginning of "
            "this run, continue."
        ),
    ] = None,
    html: Annotated[
        str | None, typer.Option(help='Write a report (needs "hf-specplug[plot]").')
    ] = None,
) -> None:
    """Compare plain decoding, prompt lookup, a static cache and the plug on your prompts."""
    if context.invoked_subcommand is not None:
        return
    with resumable("bench", again=out is not None):
        from hf_specplug.bench.compare import Options

        counts = _numbers("--batch", "rows", batch) if batch is not None else ()
        asked = (model, prompts, methods, datastore or (), per_task, tokens, dtype, temperature)
        _run(Options(*asked, counts, samples), out, html)


def _run(options: Options, out: str | None, html: str | None) -> None:
    """Measure, and show what has been measured, also if it is interrupted."""
    from hf_specplug.bench import page, tables
    from hf_specplug.bench.compare import Benchmark
    from hf_specplug.cli import console

    if html:
        page.check(html)
    benchmark = Benchmark(options, out, console.progress)
    try:
        benchmark.run()
    finally:
        if benchmark.results["rows"] or benchmark.results["batches"]:
            if html:
                page.write(html, benchmark.results)
            tables.show(benchmark.results, console.output())


@bench.command(epilog="Example: specplug bench report bench.json report.html")
def report(
    results: Annotated[str, typer.Argument(help="A file that `specplug bench --out` wrote.")],
    html: Annotated[str, typer.Argument(help="The report to write.")],
) -> None:
    """Write the report of a run, finished or not."""
    with friendly("bench report"):
        from hf_specplug.bench.page import write
        from hf_specplug.bench.results import read

        write(html, read(results))
        typer.echo(f"{html}: written")


@bench.command(
    epilog="Example: specplug bench engine --model ./my-model --texts answers.jsonl "
    "--dtype bfloat16 --out engine.json"
)
def engine(
    model: Annotated[str, typer.Option(help="Folder or Hub name of a causal LM.")],
    texts: Annotated[str, typer.Option(help='JSON lines with "task", "prompt" and "response".')],
    per_task: Annotated[int, typer.Option(min=1, help="Answers per task.")] = 2,
    tokens: Annotated[int, typer.Option(min=2, help="Maximum length of an answer.")] = 160,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "bfloat16",
    contexts: Annotated[
        str, typer.Option(help="Tokens before a timed forward pass, with commas.")
    ] = "512,4096",
    compiled: Annotated[
        bool, typer.Option(help="Also with torch.compile (takes minutes for each width).")
    ] = False,
    out: Annotated[str | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """Compare transformers' eager, prompt lookup and static decoding with the plug's engines."""
    with friendly("bench engine"):
        from hf_specplug.bench import environment
        from hf_specplug.bench.engine import measure
        from hf_specplug.bench.engine_tables import tables
        from hf_specplug.cli import console

        lengths = _numbers("--contexts", "tokens", contexts)
        figures = measure(
            model, texts, per_task, tokens, dtype, lengths, compiled, console.progress
        )
        console.output().print(*tables(figures, f"{model}, {dtype}"))
        if out:
            arguments = {"model": model, "texts": texts, "tokens": tokens, "dtype": dtype}
            environment.write(out, arguments, **figures)


def _numbers(option: str, of: str, text: str) -> list[int]:
    from hf_specplug.errors import OptionError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"{option} takes numbers of {of}, with commas, not {text!r}")
    return [int(part) for part in parts]
