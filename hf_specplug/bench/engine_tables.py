"""The figures of `specplug bench engine` as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from hf_specplug.verify.static import PADDED_WIDTHS


def tables(figures: dict[str, Any], title: str) -> Iterator[Table]:
    """Speeds, forward passes by width, and attention by width.

    Args:
        figures: what `engine.measure` returns.
        title: of the first table; the number of answers is added.
    """
    rows = figures["rows"]
    yield _speeds(rows, figures["stats"], f"{title}, {figures['device']}, {len(rows)} answers")
    yield _by_width(figures["milliseconds by width"], "ms per forward pass by tokens checked")
    attention = figures["attention milliseconds by width"]
    yield _by_width(attention, "ms of one layer's attention by tokens checked")


def _speeds(rows: list[dict[str, Any]], stats: dict[str, dict[str, Any]], title: str) -> Table:
    table = Table(title=title, padding=(0, 0, 0, 1))
    table.add_column("method", no_wrap=True)
    for column in ("tokens/s", "x generate", "x static", "accept\nlength", "host ms\nper step"):
        table.add_column(column, justify="right")
    methods = [name for name in rows[0] if name not in ("task", "tokens")]
    seconds = {name: sum(row[name] for row in rows) for name in methods}
    tokens = sum(row["tokens"] for row in rows)
    for name in methods:
        accept = host = ""
        counted = stats.get(name)
        if counted is not None and counted["forwards"]:
            spent = sum(counted["seconds"][phase] for phase in ("draft", "accept", "observe"))
            accept = f"{counted['accept_length']:.2f}"
            host = f"{1e3 * spent / counted['forwards']:.2f}"
        table.add_row(
            name,
            f"{tokens / seconds[name]:.1f}",
            f"{seconds['generate'] / seconds[name]:.3f}",
            f"{seconds['static cache'] / seconds[name]:.3f}",
            accept,
            host,
        )
    return table


def _by_width(times: dict[str, dict[int, float]], title: str) -> Table:
    table = Table(title=title, padding=(0, 0, 0, 1))
    table.add_column("after so many tokens", no_wrap=True)
    for width in PADDED_WIDTHS:
        table.add_column(str(width), justify="right")
    for name, by_width in times.items():
        table.add_row(name, *(f"{by_width[width]:.3g}" for width in PADDED_WIDTHS))
    return table
