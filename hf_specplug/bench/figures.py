"""The results of `specplug bench` as figures; those of a plug's counters are in `plots`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_specplug.bench.methods import PLAIN
from hf_specplug.bench.prompts import TASKS
from hf_specplug.bench.results import Results, Summary, methods, speeds, summary, summed, tasks
from hf_specplug.telemetry import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE = 11.5  # inches


def by_task(results: Results) -> Figure:
    """Speed of each method by task, and on all tasks."""
    with plots.style():
        figure, (axes,) = plots.subplots(1, 1, (_WIDE, 3.6))
        groups = [*tasks(results), None]
        others = _others(results)
        thick = 0.8 / max(len(others), 1)
        for place, method in enumerate(others):
            heights = [summary(results, method, task).speed for task in groups]
            left = [at + (place + 0.5) * thick - 0.4 for at in range(len(groups))]
            shade = plots.colour(method, others)
            bars = axes.bar(left, heights, width=0.92 * thick, label=method, color=shade)
            axes.bar_label(bars, fmt="%.2f", padding=1, fontsize=8 if thick > 0.15 else 6)
        names = ["all" if task is None else TASKS.get(task, task) for task in groups]
        axes.set_xticks(range(len(groups)), [name.replace(" ", "\n", 1) for name in names])
        _plain_line(axes, vertical=False)
        axes.set_ylabel("tokens per second, x plain")
        axes.margins(x=0.01, y=0.1)
        axes.legend(loc="upper left", ncols=len(others), bbox_to_anchor=(0, 1.14), borderpad=0)
    return figure


def by_rows(results: Results) -> Figure:
    """Speed, and tokens per row and forward pass, of each method by the rows of a batch."""
    parts = [part for part in results["batches"] if part["calls"]]
    others = [name for name in results["arguments"]["methods"] if name != PLAIN]
    with plots.style():
        figure, (left, right) = plots.subplots(1, 2, (_WIDE, 3.6))
        for place, method in enumerate(others):
            found = [
                (at, summed(part["calls"], method))
                for at, part in enumerate(parts)
                if method not in part["failed"]
            ]
            _bars(left, found, "speed", method, place, others)
            _bars(right, found, "tokens_per_forward", method, place, others)
        for axes, label in ((left, "tokens per second, x plain"), (right, "tokens, plain = 1")):
            axes.set_xticks(range(len(parts)), [str(part["rows"]) for part in parts])
            axes.set_xlim(-0.5, len(parts) - 0.5)
            axes.set_xlabel("rows of a batch")
            axes.set_ylabel(label)
            axes.margins(y=0.12)
            _plain_line(axes, vertical=False)
        left.set_title("speed")
        right.set_title("tokens per row and forward pass")
        names = left.get_legend_handles_labels()
        figure.legend(*names, loc="outside upper center", ncols=max(len(others), 1))
    return figure


def _bars(
    axes: Axes,
    found: list[tuple[int, Summary]],
    figure: str,
    method: str,
    place: int,
    others: list[str],
) -> None:
    """A figure of one method, at the places of the parts that it could run."""
    thick = 0.8 / len(others)
    bars = axes.bar(
        [at + (place + 0.5) * thick - 0.4 for at, _ in found],
        [getattr(of_part, figure) for _, of_part in found],
        width=0.92 * thick,
        label=method,
        color=plots.colour(method, others),
    )
    axes.bar_label(bars, fmt="%.2f", padding=1, fontsize=8)


def by_answer(results: Results) -> Figure:
    """Speed of each method for single answers (dots), with quartiles and median (box)."""
    others = _others(results)
    with plots.style():
        figure, (axes,) = plots.subplots(1, 1, (_WIDE, 0.9 + 0.55 * max(len(others), 1)))
        for place, method in enumerate(others):
            shade, ratios = plots.colour(method, others), speeds(results["rows"], method)
            spread = [place + 0.28 * ((7 * n) % 11 / 5 - 1) for n in range(len(ratios))]
            axes.scatter(ratios, spread, s=12, color=shade, alpha=0.55, linewidths=0)
            axes.boxplot(
                [ratios],
                positions=[place],
                orientation="horizontal",
                widths=0.6,
                showfliers=False,
                showcaps=False,
                whis=0,
                boxprops={"color": plots.INK},
                medianprops={"color": plots.INK, "linewidth": 2},
                whiskerprops={"alpha": 0},
            )
        axes.set_yticks(range(len(others)), others)
        axes.invert_yaxis()
        _plain_line(axes, vertical=True)
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens per second of one answer, x plain; box: quartiles and median")
    return figure


def cost_and_contributions(results: Results) -> Figure:
    """The cost of a forward pass by its width, and what each drafter contributes."""
    rows = len(results["ablation"].get("rows", {}))
    with plots.style():
        figure, (left, right) = plots.subplots(1, 2, (_WIDE, max(3.2, 0.6 + 0.24 * rows)))
        _cost(left, results)
        _contributions(right, results)
    return figure


def _cost(axes: Axes, results: Results) -> None:
    times = results["milliseconds"]
    axes.set_title(f"a forward pass after {times['after']} tokens ({times['method']})")
    widths = [int(width) for width in times["by_width"]]
    ms = list(times["by_width"].values())
    axes.plot(widths, ms, marker="o", color=plots.PALETTE[0])
    for width, value in zip(widths, ms, strict=True):
        label = f"{value:.1f}" if width == widths[0] else f"{value:.1f}\n({value / ms[0]:.2f}x)"
        axes.annotate(label, (width, value), (0, 5), textcoords="offset points", ha="center")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_ylim(0, 1.25 * max(ms))
    axes.set_xlabel("tokens checked at once")
    axes.set_ylabel("ms per forward pass")


def _contributions(axes: Axes, results: Results) -> None:
    ablation = results["ablation"]
    if not ablation:
        axes.set_axis_off()
        return
    axes.set_title(f"the same answers replayed, {ablation['nodes']} tokens per forward pass")
    labels = list(ablation["rows"])
    lengths = [row["tokens_per_forward"] for row in ablation["rows"].values()]
    shades = [plots.PALETTE[_shade(label)] for label in labels]
    bars = axes.barh(labels, lengths, color=shades)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(lengths[0], color=plots.INK, linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("tokens per forward pass, the prompt's excluded")


def _shade(label: str) -> int:
    return 0 if label == "all" else 2 if label.endswith(" alone") else 1


def _others(results: Results) -> list[str]:
    return [method for method in methods(results) if method != PLAIN]


def _plain_line(axes: Axes, vertical: bool) -> None:
    line = axes.axvline if vertical else axes.axhline
    line(1, color=plots.INK, linewidth=1, linestyle="--")
