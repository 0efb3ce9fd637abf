"""Commands that draft: demo, record, simulate, tune-tree, learn-priors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_specplug.cli.app import app, friendly, resumable

if TYPE_CHECKING:
    from hf_specplug.replay.recording import Recording
    from hf_specplug.replay.simulate import Result


@app.command(epilog="Example: specplug demo --model ./my-model --prompt 'Explain recursion.'")
def demo(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a causal LM (default: built in).")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A prompt; may be repeated (default: a handful, built in)."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Maximum length of an answer.")] = 192,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as torch chooses.")] = 0,
    color: Annotated[bool, typer.Option(help="Colour the text by drafter.")] = True,
    store: Annotated[
        bool, typer.Option(help="Also draft from a datastore of Python's standard library.")
    ] = True,
) -> None:
    """Generate plainly and with the plug, and compare speed, forward passes and output."""
    from hf_specplug.cli import demo as module

    with friendly("demo"):
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
            help='JSON lines with "prompt", and optionally "task" and "response" (the model answers'
            " lines without one)."
        ),
    ],
    out: Annotated[str, typer.Option(help="The recording; an unfinished one is continued.")],
    tokens: Annotated[int, typer.Option(min=2, help="Maximum length of an answer.")] = 512,
    per_task: Annotated[
        int, typer.Option(min=0, help="Maximum number of texts of each task; 0: all.")
    ] = 0,
    device: Annotated[str | None, typer.Option(help="A torch device, such as cuda.")] = None,
    states: Annotated[
        bool, typer.Option("--states", help="Also record hidden states, to replay dense retrieval.")
    ] = False,
) -> None:
    """Record what a model finds likely at every token of some texts, to be replayed."""
    from hf_specplug.cli import console
    from hf_specplug.replay import record as module

    with resumable("record"):
        made = module.record(
            model, texts, out, tokens, per_task, device, states, progress=console.progress
        )
    typer.echo(f"{out}: {len(made)} texts, {made.answer_tokens} tokens of answers")


@app.command(
    epilog="Example: specplug simulate my.safetensors --nodes auto,16,32 --cost h200-graph"
)
def simulate(
    recording: Annotated[str, typer.Argument(help="A file that `specplug record` wrote.")],
    drafters: Annotated[str, typer.Option(help="Names, with commas.")] = "context,recycling,stand",
    datastore: Annotated[
        list[str] | None, typer.Option(help="A store to draft from; may be repeated.")
    ] = None,
    nodes: Annotated[
        str, typer.Option(help='Tokens per forward pass, with commas; "auto" needs --cost.')
    ] = "8,16,32,64",
    cost: Annotated[
        str | None,
        typer.Option(
            help="h200-graph, h200-eager, cpu-2core, cpu-2core-bf16, or a JSON file of "
            "milliseconds by width."
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Replay these tasks only, with commas.")] = None,
    leave_one_out: Annotated[
        bool, typer.Option(help="Also replay all drafters but each, and each alone.")
    ] = False,
    published: Annotated[
        str | None,
        typer.Option(help="Also draft as a paper does: rest, rasd, stand, or another one's name."),
    ] = None,
    calibration: Annotated[
        bool, typer.Option(help="Print predicted and realised acceptance.")
    ] = False,
    group: Annotated[
        str | None, typer.Option(help="Replay answers to a prompt as batches of so many rows.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """Replay a recording through drafters, without the model."""
    with friendly("simulate"):
        from hf_specplug.cli import console, tables
        from hf_specplug.datastore.opening import open_all
        from hf_specplug.replay.compare import compare, report
        from hf_specplug.replay.recording import load
        from hf_specplug.replay.simulate import cost_curve

        recorded = load(recording).where(_split(tasks)) if tasks else load(recording)
        if group:
            _simulate_groups(recording, recorded, drafters, group, nodes, datastore, out)
            return
        results = compare(
            recorded,
            _split(drafters),
            _sizes(nodes),
            open_all(datastore or ()),
            cost_curve(cost) if cost else None,
            published,
            leave_one_out,
            console.progress,
        )
        title = f"{recording}: {len(recorded)} texts of {recorded.model}"
        console.output().print(tables.overall(results, title), tables.by_task(results))
        _calibrations(results if calibration else {})
        if out:
            _write(out, report(recording, recorded, cost, results), indent=1)


def _calibrations(results: Mapping[str, Result]) -> None:
    from hf_specplug.cli import console

    for label, result in results.items():
        console.output().print(f"{label}\n{result.total.calibration()}")


def _simulate_groups(
    path: str,
    recorded: Recording,
    drafters: str,
    rows: str,
    nodes: str,
    datastore: list[str] | None,
    out: str | None,
) -> None:
    from hf_specplug.cli import console, tables
    from hf_specplug.datastore.opening import open_all
    from hf_specplug.errors import OptionError
    from hf_specplug.replay.group import simulate_groups

    counts = _split(rows)
    if not all(part.isdecimal() for part in counts):
        raise OptionError(f"--group takes numbers of rows, with commas, not {rows!r}")
    results = simulate_groups(
        recorded,
        _split(drafters),
        [int(part) for part in counts],
        _sizes(nodes),
        open_all(datastore or ()),
        console.progress,
    )
    console.output().print(tables.groups(results, f"{path}: answers to the same prompt"))
    if out:
        _write(out, [result.to_dict() for result in results], indent=1)


@app.command(
    "tune-tree", epilog="Example: specplug tune-tree my.safetensors --keep 80 --out tree.json"
)
def tune_tree(
    recording: Annotated[str, typer.Argument(help="A file that `specplug record` wrote.")],
    drafters: Annotated[
        str, typer.Option(help="Drafters of the best-first search to compare with, with commas.")
    ] = "stand",
    start: Annotated[int, typer.Option(min=1, max=1023, help="Nodes of the first tree.")] = 625,
    keep: Annotated[int, typer.Option(min=1, max=1023, help="Nodes of the tuned tree.")] = 80,
    out: Annotated[str | None, typer.Option(help="Write the tree as JSON.")] = None,
) -> None:
    """Tune the static tree of the STAND paper: keep the nodes that are accepted most often."""
    with friendly("tune-tree"):
        from hf_specplug.cli import console, tables
        from hf_specplug.replay.recording import load
        from hf_specplug.replay.tuning import tune

        tuned = tune(load(recording), _split(drafters), start, keep, console.progress)
        console.output().print(tables.tuned_tree(tuned, recording))
        if out:
            _write(out, tuned.to_list())


@app.command(
    "learn-priors",
    epilog="Example: specplug learn-priors my.safetensors --drafters context,recycling,mine "
    "--only mine --out priors.json",
)
def learn_priors(
    recording: Annotated[str, typer.Argument(help="A file that `specplug record` wrote.")],
    drafters: Annotated[
        str, typer.Option(help="Names, with commas; they draft together.")
    ] = "context,recycling",
    datastore: Annotated[
        list[str] | None, typer.Option(help="A store to draft from; may be repeated.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Change the numbers of this drafter only.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Replays of the recording.")] = 3,
    model: Annotated[
        str | None,
        typer.Option(
            help="The recorded model: it verifies the drafts of one more pass, so that drafters "
            "also learn from rejected tokens."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write all priors as JSON.")] = None,
) -> None:
    """Learn the priors and mixing weights that the package ships in priors.json."""
    with friendly("learn-priors"):
        from hf_specplug.cli import console
        from hf_specplug.datastore.opening import open_all
        from hf_specplug.hf import loading
        from hf_specplug.replay.learn_priors import learn, write
        from hf_specplug.replay.recording import load

        stores = open_all(datastore or ())
        verifier = None if model is None else loading.load(model)[0]
        priors, lengths = learn(
            load(recording), _split(drafters), stores, only, passes, verifier, console.progress
        )
        for number, length in enumerate(lengths, start=1):
            typer.echo(f"pass {number}: accept length {length:.3f} tokens")
        if out:
            write(priors, out)


def _split(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _sizes(text: str) -> list[int | str]:
    from hf_specplug.errors import OptionError

    sizes: list[int | str] = []
    for part in _split(text):
        if part != "auto" and not part.isdecimal():
            raise OptionError(f'--nodes takes numbers or "auto", with commas, not {part!r}')
        sizes.append(part if part == "auto" else int(part))
    return sizes


def _write(path: str, figures: Any, indent: int | None = None) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=indent)
