"""The `specplug` app and the errors of its commands. Commands import heavy libraries when run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from hf_specplug import __version__

app = typer.Typer(
    help="Speculative decoding without a draft model for transformers' model.generate: the same "
    "output, faster.",
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
def friendly(command: str, code: int = 1) -> Iterator[None]:
    """Print errors as one line, and exit with `code`."""
    from hf_specplug.errors import SpecPlugError

    try:
        yield
    except (SpecPlugError, OSError) as error:
        typer.echo(f"specplug {command}: {error}", err=True)
        raise typer.Exit(code) from error


@contextmanager
def resumable(command: str, again: bool = True, code: int = 1) -> Iterator[None]:
    """Like `friendly`; exit with code 130 if interrupted. `again`: the command can be continued."""
    try:
        with friendly(command, code):
            yield
    except KeyboardInterrupt as error:
        then = "; the same command continues" if again else ""
        typer.echo(f"specplug {command}: interrupted{then}", err=True)
        raise typer.Exit(130) from error
