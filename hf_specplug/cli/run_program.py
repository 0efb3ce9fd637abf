"""Commands for unchanged programs: run, path."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hf_specplug.cli.app import app, friendly


@app.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
    epilog="Example: specplug run --json stats.json -m my_package",
)
def run(
    program: Annotated[
        list[str],
        typer.Argument(
            metavar="PROGRAM",
            help="A Python script or a command, such as `transformers serve`, and its arguments.",
        ),
    ],
    module: Annotated[
        bool, typer.Option("-m", help="PROGRAM is a module, as in `python -m PROGRAM`.")
    ] = False,
    drafters: Annotated[str | None, typer.Option(help="Names, with commas.")] = None,
    nodes: Annotated[
        str, typer.Option(help='Maximum number of tokens per forward pass, or "auto".')
    ] = "auto",
    datastore: Annotated[
        list[str] | None, typer.Option(help="A store to draft from; may be repeated.")
    ] = None,
    pack: Annotated[
        bool, typer.Option(help="On a CPU, keep a second, faster layout of the weights.")
    ] = True,
    json: Annotated[
        str | None, typer.Option(help="Write the statistics to this file, not to stderr.")
    ] = None,
) -> None:
    """Run an unchanged program in which every model drafts, and print the statistics at its end."""
    from hf_specplug.entrypoints import launch

    options: dict[str, Any] = {}
    if drafters is not None:
        options["drafters"] = [name.strip() for name in drafters.split(",")]
    if nodes != "auto":
        options["nodes"] = int(nodes) if nodes.isdecimal() else nodes
    if datastore:
        options["datastores"] = datastore
    if not pack:
        options["pack"] = False
    with friendly("run"):
        raise typer.Exit(launch.run(program, module, options, json))


@app.command(epilog="Example: hf upload me/specplug $(specplug path custom_generate) .")
def path(
    name: Annotated[str, typer.Argument(help="custom_generate.")] = "custom_generate",
) -> None:
    """Print where a folder of this package is.

    custom_generate is a decoding method for `generate(custom_generate=FOLDER,
    trust_remote_code=True)`, and a repository for the Hub.
    """
    from hf_specplug import CUSTOM_GENERATE
    from hf_specplug.errors import OptionError

    with friendly("path"):
        if name != "custom_generate":
            raise OptionError(f"there is a folder custom_generate, not {name!r}")
        typer.echo(CUSTOM_GENERATE)
