"""What commands print: results on standard output, progress bars on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

T = TypeVar("T")


def output() -> Console:
    """The console for results."""
    return Console(highlight=False)


def progress(items: Iterable[T], label: str) -> Iterable[T]:
    """Show a progress bar on standard error while items are passed on."""
    return track(items, label, console=Console(stderr=True), transient=True)


def table(title: str, columns: Sequence[str]) -> Table:
    """An empty table: the first column is aligned left and not wrapped, the others right."""
    made = Table(title=title, padding=(0, 0, 0, 1))
    made.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made
