"""`specplug audit`: whether drafted generation gives the same tokens on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hf_specplug.cli.app import app, resumable

if TYPE_CHECKING:
    from rich.table import Table

_LINES = 20  # differences that are printed


@app.command(
    epilog="Example: specplug audit --model ./my-model --json audit.json --page audit.html"
)
def audit(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a causal LM (default: built in).")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help='JSON lines with "prompt" or "turns" (default: two, built in).'),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each sampled case.")] = 3,
    tokens: Annotated[int, typer.Option(min=8, help="Maximum length of an answer.")] = 40,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16 or float64 (default: the model's; on a CPU float32)."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A torch device (default: cuda if there is one).")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the certificate.")] = None,
    page: Annotated[
        str | None, typer.Option("--page", help="Write the certificate as an HTML page.")
    ] = None,
) -> None:
    """Compare plain and drafted generate token by token: an identity certificate.

    Greedy, sampled with several seeds, and with the logits processors of transformers. The exit
    code is 1 if a token differs in float32 or float64, or in lower precision where rounding does
    not explain it; it is 2 if nothing can be compared. Attach the page to a bug report.
    """
    with resumable("audit", again=False, code=2):
        from hf_specplug.audit import page as pages
        from hf_specplug.audit import verdict
        from hf_specplug.audit.certificate import Audit, Options
        from hf_specplug.bench import environment
        from hf_specplug.cli import console

        for path in (json, page):
            if path:
                open(path, "a", encoding="utf-8").close()  # an error now, not after the work
        options = Options(model, prompts, seeds, tokens, dtype, device)
        certificate = Audit(options, console.progress).run()
        if json:
            environment.save(json, certificate)
        if page:
            pages.write(page, certificate)
        terminal = console.output()
        terminal.print(_table(verdict.title(certificate), verdict.by_case(certificate)))
        lines = verdict.lines(certificate)
        for line in lines[:_LINES]:
            terminal.print(line, markup=False)
        if len(lines) > _LINES:
            terminal.print(f"... and {len(lines) - _LINES} more: see --json or --page")
        for line in verdict.notes(certificate):
            terminal.print(line, style="dim", markup=False)
        failed = verdict.failures(certificate)
        style = "bold red" if failed else "bold green"
        terminal.print(verdict.verdict(certificate), style=style, markup=False)
    if failed:
        raise typer.Exit(1)


def _table(title: str, cells: tuple[list[str], list[list[str]]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape

    from hf_specplug.cli import console

    columns, rows = cells
    made = console.table(escape(title), columns[:-1])
    made.box = SIMPLE_HEAD
    made.add_column(columns[-1], overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made
