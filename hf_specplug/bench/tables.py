"""The results of `specplug bench` as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from hf_specplug.bench.prompts import TASKS
from hf_specplug.bench.results import Results, Summary, methods, notes, summary, summed, tasks


def show(results: Results, console: Console) -> None:
    """Print all results."""
    if results["batches"]:
        console.print(_table(title(results), by_rows(results)))
    if results["rows"]:
        console.print(_table(title(results), overall(results)))
        heading = "speed by task, as Spec-Bench counts"
        console.print(_table(heading, _transposed(spec_bench(results))))
    if results["ablation"]:
        nodes = results["ablation"]["nodes"]
        heading = f"the same answers replayed, {nodes} tokens per forward pass"
        console.print(_table(heading, contributions(results)))
    for line in notes(results):
        console.print(line, style="yellow")


def title(results: Results) -> str:
    """Model, dtype, decoding and machine."""
    asked = results["arguments"]
    how = f"T = {asked['temperature']:g}, seeded" if asked["temperature"] else "greedy"
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    if asked.get("samples", 1) > 1:
        how += f", {asked['samples']} samples of each prompt"
    return f"{asked['model']}, {asked['dtype']}, {how}, {asked['tokens']} tokens, on {where}"


Cells = tuple[list[str], list[list[str]]]
"""(columns, rows)"""


def overall(results: Results) -> Cells:
    """A row for each method: speed, its spread over answers, tokens per forward pass, identity."""
    columns = ["method", "tokens/s", "x plain", "median answer (quartiles)"]
    columns += ["tokens per forward pass", "identical to plain"]
    rows = []
    rows = [[method, *_cells(summary(results, method))] for method in methods(results)]
    return columns, rows


def _cells(summary: Summary) -> list[str]:
    low, middle, high = summary.quartiles
    return [
        f"{summary.tokens_per_second:.1f}",
        f"{summary.speed:.2f}",
        f"{middle:.2f} ({low:.2f}-{high:.2f})",
        f"{summary.tokens_per_forward:.2f}",
        f"{summary.identical} of {summary.answers}",
    ]


def by_rows(results: Results) -> Cells:
    """A row for each number of rows and method."""
    columns = ["rows, method", "tokens/s", "x plain", "median batch (quartiles)"]
    columns += ["tokens per row and pass", "time in the tail", "identical to plain"]
    rows = []
    for part in results["batches"]:
        for method in results["arguments"]["methods"]:
            label = f"{part['rows']}, {method}"
            if method in part["failed"]:
                single = "batch_size = 1" in part["failed"][method]  # transformers' own drafters
                rows.append([label, "", "one row only" if single else "failed", *[""] * 4])
            elif part["calls"]:
                *figures, same = _cells(summed(part["calls"], method))
                rows.append([label, *figures, _tail(part["stats"].get(method)), same])
    return columns, rows


def _tail(stats: dict[str, Any] | None) -> str:
    """The share of a plug's time in which fewer than half of a batch's rows were generating."""
    if not stats or not stats["batch_seconds"]:
        return ""
    return f"{stats['tail_seconds'] / stats['batch_seconds']:.0%}"


def spec_bench(results: Results) -> Cells:
    """A row for each method with the columns of Spec-Bench."""
    known = [task for task in TASKS if task in tasks(results)]
    known += [task for task in tasks(results) if task not in TASKS]
    columns = ["Models", *(TASKS.get(task, task) for task in known)]
    columns += ["#Mean Accepted Tokens", "Overall"]
    rows = []
    for method in methods(results):
        speeds = [summary(results, method, task).spec_bench for task in known]
        whole = summary(results, method)
        figures = [f"{speed:.2f}x" for speed in speeds]
        overall = f"{whole.spec_bench:.2f}x"
        rows.append([method, *figures, f"{whole.tokens_per_forward:.2f}", overall])
    return columns, rows


def contributions(results: Results) -> Cells:
    """A row for each set of drafters that was replayed."""
    rows = [
        [label, f"{row['tokens_per_forward']:.2f}", f"{row['speed']:.2f}"]
        for label, row in results["ablation"].get("rows", {}).items()
    ]
    return [
        results["ablation"].get("method", ""),
        "tokens per forward pass",
        "x plain, by cost",
    ], rows


def _transposed(cells: Cells) -> Cells:
    """Rows as columns: the names of Spec-Bench's columns are too long for a terminal."""
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
