"""The results of `specplug bench` as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hf_specplug.bench.prompts import TASKS
from hf_specplug.bench.results import Results, methods, notes, summary, tasks


def show(found: Results, console: Console) -> None:
    """Print all that was measured."""
    console.print(_overall(found))
    console.print(_by_task(found))
    if found["ablation"]:
        console.print(_ablation(found))
    for line in notes(found):
        console.print(line, style="yellow")


def title(found: Results) -> str:
    """Model, dtype, how it decodes, and where."""
    asked = found["arguments"]
    how = f"T = {asked['temperature']:g}, seeded" if asked["temperature"] else "greedy"
    machine = found["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{asked['model']}, {asked['dtype']}, {how}, {asked['tokens']} tokens, on {where}"


def _table(title: str, first: str, columns: list[str]) -> Table:
    table = Table(title=title, padding=(0, 0, 0, 1))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _overall(found: Results) -> Table:
    columns = ["tokens/s", "x plain", "of single answers:\nquartiles, median"]
    columns += ["tokens per\nforward pass", "identical"]
    table = _table(title(found), "method", columns)
    for method in methods(found):
        of = summary(found, method)
        low, middle, high = of.quartiles
        same = f"{of.identical} of {of.answers}"
        table.add_row(
            method,
            f"{of.tokens_per_second:.1f}",
            f"{of.speed:.2f}",
            f"{low:.2f} [{middle:.2f}] {high:.2f}",
            f"{of.tokens_per_forward:.2f}",
            same if of.identical == of.answers else f"[yellow]{same}[/yellow]",
        )
    return table


def spec_bench(found: Results) -> tuple[list[str], list[list[str]]]:
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


def _by_task(found: Results) -> Table:
    """Spec-Bench's table, turned: its columns' names are long, and terminals are narrow."""
    columns, rows = spec_bench(found)
    table = _table("speed by task, as Spec-Bench counts", "", [row[0] for row in rows])
    for place, column in enumerate(columns[1:], start=1):
        table.add_row(column, *(row[place] for row in rows))
    return table


def _ablation(found: Results) -> Table:
    of = found["ablation"]
    title = f"the same answers replayed, {of['nodes']} tokens per forward pass"
    table = _table(title, of["method"], ["tokens per\nforward pass", "x plain,\nby cost"])
    for label, row in of["rows"].items():
        table.add_row(label, f"{row['tokens_per_forward']:.2f}", f"{row['speed']:.2f}")
    return table
