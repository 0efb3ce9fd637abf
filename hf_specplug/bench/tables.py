"""The results of `specplug bench` as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hf_specplug.bench.prompts import TASKS
from hf_specplug.bench.results import Results, methods, notes, summary, tasks


def show(found: Results, console: Console) -> None:
    """Print all that was measured."""
    console.print(_table(title(found), overall(found)))
    console.print(_table("speed by task, as Spec-Bench counts", _turned(spec_bench(found))))
    if found["ablation"]:
        nodes = found["ablation"]["nodes"]
        heading = f"the same answers replayed, {nodes} tokens per forward pass"
        console.print(_table(heading, worth(found)))
    for line in notes(found):
        console.print(line, style="yellow")


def title(found: Results) -> str:
    """Model, dtype, how it decodes, and where."""
    asked = found["arguments"]
    how = f"T = {asked['temperature']:g}, seeded" if asked["temperature"] else "greedy"
    machine = found["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{asked['model']}, {asked['dtype']}, {how}, {asked['tokens']} tokens, on {where}"


Cells = tuple[list[str], list[list[str]]]
"""(columns, rows)"""


def overall(found: Results) -> Cells:
    """A row for each method: speed, its spread over answers, accept length, identity."""
    columns = ["method", "tokens/s", "x plain", "median answer (quartiles)"]
    columns += ["tokens per forward pass", "identical to plain"]
    rows = []
    for method in methods(found):
        of = summary(found, method)
        low, middle, high = of.quartiles
        speeds = [f"{of.tokens_per_second:.1f}", f"{of.speed:.2f}"]
        spread = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        same = f"{of.identical} of {of.answers}"
        rows.append([method, *speeds, spread, f"{of.tokens_per_forward:.2f}", same])
    return columns, rows


def spec_bench(found: Results) -> Cells:
    """Spec-Bench's table: its columns, and a row for each method; its tasks under their names."""
    known = [task for task in TASKS if task in tasks(found)]
    known += [task for task in tasks(found) if task not in TASKS]
    columns = ["Models", *(TASKS.get(task, task) for task in known)]
    columns += ["#Mean Accepted Tokens", "Overall"]
    rows = []
    for method in methods(found):
        speeds = [summary(found, method, task).spec_bench for task in known]
        whole = summary(found, method)
        figures = [f"{speed:.2f}x" for speed in speeds]
        overall = f"{whole.spec_bench:.2f}x"
        rows.append([method, *figures, f"{whole.tokens_per_forward:.2f}", overall])
    return columns, rows


def worth(found: Results) -> Cells:
    """A row for each set of drafters: what it was worth in the replay; none if there was none."""
    rows = [
        [label, f"{row['tokens_per_forward']:.2f}", f"{row['speed']:.2f}"]
        for label, row in found["ablation"].get("rows", {}).items()
    ]
    return [
        found["ablation"].get("method", ""),
        "tokens per forward pass",
        "x plain, by cost",
    ], rows


def _turned(cells: Cells) -> Cells:
    """Rows as columns: Spec-Bench's columns have long names, and terminals are narrow."""
    columns, *rows = (list(column) for column in zip(cells[0], *cells[1], strict=True))
    return ["", *columns[1:]], rows


def _table(heading: str, cells: Cells) -> Table:
    table = Table(title=heading, padding=(0, 0, 0, 1))
    for place, column in enumerate(cells[0]):
        table.add_column(
            column, justify="right" if place else "left", overflow="fold", no_wrap=not place
        )
    for row in cells[1]:
        table.add_row(*row)
    return table
