"""What the comparison prints."""

from __future__ import annotations

from collections.abc import Mapping

from tests.benchmarks.rivals.replay import Score

Scores = Mapping[tuple[str, int], Score]
"""By name of the method, and tokens per forward pass."""

_HEADER = f"{'method':20} nodes  tokens/pass  drafted  accepted/drafted  us median     p99     MiB"


def overview(scores: Scores, memory: Mapping[str, int | None]) -> str:
    """A row for each method and size."""
    lines = [_HEADER]
    for (name, size), score in scores.items():
        row, taken = score.to_dict(), memory[name]
        lines.append(
            f"{name:20} {size:5} {row['tokens_per_forward']:12.3f} {row['nodes_per_step']:8.1f} "
            f"{row['accepted_per_node']:17.3f} {row['us_median']:10.0f} {row['us_p99']:7.0f} "
            + (f"{'-':>7}" if taken is None else f"{taken / 2**20:7.1f}")
        )
    return "\n".join(lines)


def by_task(scores: Scores, size: int) -> str:
    """Tokens per forward pass of each task: a row for each method at a size, or at its only one."""
    names = [name for name, _ in scores]
    shown = {
        name: {task: count.accept_length for task, count in score.by_task().items()}
        for (name, nodes), score in scores.items()
        if nodes == size or names.count(name) == 1
    }
    tasks = sorted({task for row in shown.values() for task in row})
    widths = [max(7, len(task) + 2) for task in tasks]
    columns = "".join(f"{task:>{width}}" for task, width in zip(tasks, widths, strict=True))
    lines = [f"{f'tokens/pass at {size}':20}{columns}"]
    for name, row in shown.items():
        figures = (f"{row[task]:{width}.3f}" for task, width in zip(tasks, widths, strict=True))
        lines.append(f"{name:20}{''.join(figures)}")
    return "\n".join(lines)
