"""`specplug bench`: speed on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_specplug.cli.app import app, friendly

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
    from hf_specplug.bench import engine as module

    with friendly("bench engine"):
        module.engine(model, texts, per_task, tokens, dtype, contexts, compiled, out)
