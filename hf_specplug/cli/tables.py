"""The tables of `specplug simulate` and `specplug tune-tree`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from hf_specplug.cli.console import table
from hf_specplug.published.static_tree import depths
from hf_specplug.replay.group import GroupResult
from hf_specplug.replay.simulate import Result
from hf_specplug.replay.tuning import Tuned

_MAX_COLUMNS = 5  # sets of drafters that fit side by side on a screen


def overall(results: Mapping[str, Result], title: str) -> Table:
    """A row for each set of drafters."""
    columns = ["drafters @nodes", "tokens\nper step", "nodes\nper step", "accepted\nper node"]
    made = table(title, [*columns, "µs\nper step", "ECE", "x plain"])
    for label, result in results.items():
        stats = result.total
        steps, speed = max(stats.forwards, 1), result.speed()
        made.add_row(
            label,
            f"{stats.accept_length:.3f}",
            f"{stats.drafted / steps:.1f}",
            f"{stats.accepted / max(stats.drafted, 1):.3f}",
            f"{1e6 * sum(result.draft_seconds.values()) / steps:.0f}",
            f"{stats.calibration().ece:.4f}",
            "" if speed is None else f"{speed:.3f}",
        )
    return made


def by_task(results: Mapping[str, Result]) -> Table:
    """Speedup (with a cost curve) or tokens per step of each task: a row for each task.

    With many sets of drafters the rows are the sets and the columns the tasks.
    """
    first = next(iter(results.values()))
    priced, tasks = first.speed() is not None, sorted(first.by_task)

    def figure(label: str, task: str) -> str:
        result = results[label]
        rate = result.speed(task) if priced else result.by_task[task].accept_length
        return f"{rate:.3f}"

    title = "x plain" if priced else "tokens per step"
    if len(results) > _MAX_COLUMNS:
        made = table(title, ["drafters @nodes", *tasks])
        for label in results:
            made.add_row(label, *(figure(label, task) for task in tasks))
    else:
        made = table(title, ["task", *results])
        for task in tasks:
            made.add_row(task, *(figure(label, task) for label in results))
    return made


def groups(results: Sequence[GroupResult], title: str) -> Table:
    """A row for each number of rows and nodes."""
    made = table(title, ["rows @nodes", "alone", "in lockstep", "x alone"])
    for result in results:
        lengths = result.alone.accept_length, result.batch.accept_length, result.gain
        made.add_row(f"{result.rows} @{result.nodes}", *(f"{each:.3f}" for each in lengths))
    made.caption = "tokens per row and forward pass"
    return made


def tuned_tree(tuned: Tuned, path: str) -> Table:
    """A row for each tree that was tried on the held-out texts."""
    title = f"{path}: {tuned.held_out} held-out texts"
    made = table(title, ["tree", "nodes", "tokens\nper step", "drafted\nper step"])
    made.add_column("nodes by depth")
    for trial in tuned.trials:
        stats, levels = trial.result.total, "chosen at each step"
        if trial.shape is not None:
            levels = " ".join(map(str, np.bincount(depths(trial.shape[0]))[1:]))
        drafted = f"{stats.drafted / max(stats.forwards, 1):.1f}"
        made.add_row(trial.label, str(trial.nodes), f"{stats.accept_length:.3f}", drafted, levels)
    return made
