"""`specplug simulate`: sets of drafters, tree sizes and papers compared on a recording."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hf_specplug import __version__
from hf_specplug.datastore.opening import open_all
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import give, readers
from hf_specplug.errors import OptionError
from hf_specplug.replay.recording import RecordedText, load
from hf_specplug.replay.simulate import Result, cost_curve, simulate

_WIDE = 5  # columns of sets of drafters that fit on a screen


def run(
    path: str,
    drafters: str,
    datastores: Sequence[str],
    nodes: str,
    cost: str | None,
    tasks: str | None,
    leave_one_out: bool,
    published: str | None,
    calibration: bool,
    out: str | None,
) -> None:
    """Replay, print tables, and write `out`; the arguments are those of the command.

    Raises:
        RecordingError: the recording or the cost curve cannot be used.
        OptionError: an unknown drafter, size or paper.
    """
    recording = load(path)
    if tasks:
        recording = recording.where(_split(tasks))
    curve = cost_curve(cost) if cost else None
    console = Console(highlight=False)
    progress_bars = Console(stderr=True)
    names = _split(drafters)
    stores = open_all(datastores)
    names += [name for name in readers(stores) if name not in names]
    results: dict[str, Result] = {}
    for label, group, size, paper in _plan(names, _sizes(nodes), leave_one_out, published):

        def progress(traces: Iterable[RecordedText], label: str = label) -> Iterable[RecordedText]:
            return track(traces, label, total=len(recording), console=progress_bars, transient=True)

        made = create(group)
        give(stores, made)
        results[label] = simulate(recording, made, size, curve, paper, progress)
    console.print(_table(results, f"{path}: {len(recording)} texts of {recording.model}"))
    console.print(_by_task(results, curve is not None))
    if calibration:
        for label, result in results.items():
            console.print(f"{label}\n{result.total.calibration()}")
    if out:
        report = {
            "recording": path,
            "model": recording.model,
            "cost": cost,
            "machine": platform.machine(),
            "hf_specplug": __version__,
            "results": {label: result.to_dict() for label, result in results.items()},
        }
        with open(out, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _sizes(text: str) -> list[int | str]:
    sizes: list[int | str] = []
    for part in _split(text):
        if part != "auto" and not part.isdecimal():
            raise OptionError(f'nodes are numbers or "auto", with commas, not {part!r}')
        sizes.append(part if part == "auto" else int(part))
    return sizes


def _plan(
    names: list[str], sizes: list[int | str], leave_one_out: bool, published: str | None
) -> Iterator[tuple[str, list[str], int | str, str | None]]:
    """(label, drafters, nodes, paper) of each replay."""
    groups = {"+".join(names): names}
    if leave_one_out and len(names) > 1:
        groups |= {name: [name] for name in names}
        others = {f"without {name}": [n for n in names if n != name] for name in names}
        groups |= {label: group for label, group in others.items() if len(group) > 1}
    for size in sizes:
        for label, group in groups.items():
            yield f"{label} @{size}", group, size, None
        if published:
            yield f"{published} @{size}", names, size, published


def _table(results: dict[str, Result], title: str) -> Table:
    table = Table(title=title, padding=(0, 0, 0, 1))
    table.add_column("drafters @nodes", no_wrap=True)
    columns = ("tokens\nper step", "nodes\nper step", "accepted\nper node", "µs\nper step", "ECE")
    for column in (*columns, "x plain"):
        table.add_column(column, justify="right")
    for label, result in results.items():
        stats = result.total
        steps, speed = max(stats.forwards, 1), result.speed()
        table.add_row(
            label,
            f"{stats.accept_length:.3f}",
            f"{stats.drafted / steps:.1f}",
            f"{stats.accepted / max(stats.drafted, 1):.3f}",
            f"{1e6 * sum(result.draft_seconds.values()) / steps:.0f}",
            f"{stats.calibration().ece:.4f}",
            "" if speed is None else f"{speed:.3f}",
        )
    return table


def _by_task(results: dict[str, Result], priced: bool) -> Table:
    """A row for each task, or, of many sets of drafters, for each of these."""
    title = "x plain" if priced else "tokens per step"
    tasks = sorted(next(iter(results.values())).by_task)

    def figure(label: str, task: str) -> str:
        result = results[label]
        rate = result.speed(task) if priced else result.by_task[task].accept_length
        return f"{rate:.3f}"

    rows, columns = tasks, list(results)
    if len(columns) > _WIDE:
        rows, columns = columns, rows
    table = Table(title=title, padding=(0, 0, 0, 1))
    table.add_column("task" if rows is tasks else "drafters @nodes", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        pairs = [(column, row) if rows is tasks else (row, column) for column in columns]
        table.add_row(row, *(figure(*pair) for pair in pairs))
    return table
