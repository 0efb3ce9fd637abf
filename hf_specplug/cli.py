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


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
