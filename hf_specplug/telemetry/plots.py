"""Plots of a plug's counters, drawn with matplotlib from `Stats.to_dict()`.

Each panel is drawn onto given axes, so that other reports can use it. `svg` makes a picture that
follows the light or dark colours of a page. The user's matplotlib settings are not changed.
"""

from __future__ import annotations

import functools
import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hf_specplug.errors import PlotError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#4c78a8", "#ec8a1c", "#1fb3a5", "#a45fe6", "#b5301a", "#8bac67", "#5a5f55", "#6a2be0")
"""Colours that the colour-blind can tell apart, and that are visible on white and on black."""

INK = "#1f2429"
"""The colour of text and axes. `svg` replaces it by the colour of the page's text."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": 0.15,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "text.parse_math": False,  # names are given by users
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_specplug",
}

_FIRST = ("context", "recycling", "stand", "gumbel", "rest", "dense", "trigram", "phrases")


def colour(name: str, names: Sequence[str]) -> str:
    """The colour of a drafter (or method) among `names`; built-in drafters have fixed colours.

    Example:
        >>> colour("context", ["stand", "context"]) == colour("context", ["context"])
        True
    """
    own = dict(zip(_FIRST, PALETTE, strict=True))
    free = [value for key, value in own.items() if key not in names] or PALETTE
    others = [key for key in names if key not in own]
    return own[name] if name in own else free[others.index(name) % len(free)]


def style() -> AbstractContextManager[None]:
    """A context in which figures and axes have the style of this package.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        from matplotlib import style as styles
    except ImportError as error:
        raise PlotError('plots need matplotlib: pip install "hf-specplug[plot]"') from error
    return styles.context(["default", _STYLE])  # type: ignore[no-any-return]


def subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches, which notebooks show, and its axes row by row.

    Raises:
        PlotError: matplotlib is not installed.

    Example:
        >>> with style():
        ...     figure, (left, right) = subplots(1, 2, (8, 3))
        ...     lengths(left, plug.stats.to_dict())
        ...     phases(right, plug.stats.to_dict())
    """
    with style():
        figure = _shown()(figsize=size, layout="constrained")
        return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


@functools.cache
def _shown() -> type[Figure]:
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that notebooks show without pyplot."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Shown


def stats_figure(stats: Mapping[str, Any]) -> Figure:
    """All panels of one plug, two rows of three.

    Args:
        stats: what `Stats.to_dict()` returns, or its JSON; the same in every function here.

    Raises:
        PlotError: matplotlib is not installed.
    """
    panels = (lengths, depths, widths, phases, drafters, calibration)
    with style():
        figure, places = subplots(2, 3, (11.5, 6.2))
        for panel, axes in zip(panels, places, strict=True):
            panel(axes, stats)
    return figure


def lengths(axes: Axes, stats: Mapping[str, Any]) -> None:
    """Tokens emitted per forward pass and row: the share of each number, and the mean."""
    axes.set_title("tokens per forward pass")
    if not _any(axes, stats["forwards"], "no forward passes yet"):
        return
    _shares(axes, stats["lengths"], sum(stats["lengths"].values()))
    axes.axvline(stats["accept_length"], color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        f"mean {stats['accept_length']:.2f}",
        (stats["accept_length"], 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -2),
        textcoords="offset points",
        verticalalignment="top",
    )
    axes.set_xlabel("tokens emitted, the model's own included")


def widths(axes: Axes, stats: Mapping[str, Any]) -> None:
    """Tokens checked per forward pass, as the budget chose."""
    axes.set_title("checked at once")
    if _any(axes, stats["forwards"], "no forward passes yet"):
        _shares(axes, stats["widths"], stats["forwards"])
        axes.set_xlabel("tokens checked per forward pass, 1 = no draft")


def depths(axes: Axes, stats: Mapping[str, Any]) -> None:
    """The share of forward passes (each row counts) whose draft was accepted at each depth."""
    axes.set_title("accepted by depth")
    if not _any(axes, stats["drafted"], "nothing drafted yet"):
        return
    by_depth = dict(enumerate(stats["accepted_per_position"], start=1)) or {1: 0}
    _shares(axes, by_depth, sum(stats["lengths"].values()))
    axes.set_xlabel("depth of the draft (tokens ahead)")


def phases(axes: Axes, stats: Mapping[str, Any]) -> None:
    """Milliseconds of a forward pass by phase; the prompt's is shown apart."""
    axes.set_title("time")
    if not _any(axes, stats["forwards"], "no forward passes yet"):
        return
    seconds = {name: value for name, value in stats["seconds"].items() if name != "prefill"}
    spent = [1e3 * value / stats["forwards"] for value in seconds.values()]
    bars = axes.bar(list(seconds), spent, color=PALETTE[0])
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set_ylabel("ms per forward pass")
    axes.margins(y=0.12)
    axes.grid(axis="y")
    prefill = 1e3 * stats["seconds"]["prefill"] / (stats["calls"] or 1)
    note = f"prefill apart: {prefill:.1f} ms a call"
    if stats["prepared"]:
        note += f"; verify includes {stats['preparing']:.1f} s of capturing"
    axes.set_xlabel(note)


def drafters(axes: Axes, stats: Mapping[str, Any]) -> None:
    """Drafted and accepted tokens by drafter."""
    axes.set_title("by drafter")
    names = [name for name, count in stats["drafted_by"].items() if count]
    if not _any(axes, names, "nothing drafted yet"):
        return
    colours = [colour(name, list(stats["drafted_by"])) for name in names]
    drafted = [stats["drafted_by"][name] for name in names]
    accepted = [stats["accepted_by"][name] for name in names]
    bars = axes.barh(names, drafted, color=colours, alpha=0.35)
    axes.barh(names, accepted, color=colours)
    shares = [
        f"{right} of {count}: {right / count:.0%}"
        for right, count in zip(accepted, drafted, strict=True)
    ]
    axes.bar_label(bars, shares, padding=3)
    axes.margins(x=0.75)
    axes.invert_yaxis()
    axes.set_xlabel(
        "tokens accepted (full) of drafted (pale);\na token of two drafters counts for both"
    )


def calibration(axes: Axes, stats: Mapping[str, Any]) -> None:
    """Predicted and realised acceptance; calibrated predictions are on the diagonal."""
    bins = stats["calibration"]
    axes.set_title("calibration")
    if not _any(axes, sum(bins["count"]), "nothing drafted yet"):
        return
    axes.set_title(f"calibration: error (ECE) {bins['ece']:.3f}")
    rows = zip(bins["count"], bins["predicted"], bins["accepted"], strict=True)
    kept = [row for row in rows if row[0]]
    most = max(count for count, _, _ in kept)
    axes.axline((0, 0), (1, 1), color=INK, alpha=0.5, linestyle="--", linewidth=1)
    axes.scatter(
        [predicted / count for count, predicted, _ in kept],
        [accepted / count for count, _, accepted in kept],
        s=[8 + 110 * count / most for count, _, _ in kept],
        color=PALETTE[0],
        alpha=0.8,
        linewidths=0,
    )
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    axes.set_xlabel("predicted P(accepted), dots by number of nodes")
    axes.set_ylabel("share accepted")


def _any(axes: Axes, there: Any, otherwise: str) -> bool:
    """Whether there is something to draw; if not, write `otherwise` into the panel."""
    if not there:
        axes.set_axis_off()
        axes.text(0.5, 0.5, otherwise, horizontalalignment="center", transform=axes.transAxes)
    return bool(there)


def _shares(axes: Axes, counts: Mapping[Any, int], forwards: int) -> None:
    """Bars at whole numbers: the share of forward passes."""
    from matplotlib.ticker import MaxNLocator

    places = sorted(int(number) for number in counts)
    span = places[-1] - places[0]
    wide = max(0.8, span / 60)  # visible where bars are few and far apart
    shares = [100 * count / forwards for count in counts.values()]
    axes.bar([int(number) for number in counts], shares, width=wide, color=PALETTE[0])
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if all(20 * (after - before) > span for before, after in pairwise(places)):
        axes.set_xticks(places)
    axes.set_xlim(min(1, places[0]) - 0.9 * wide, places[-1] + 0.9 * wide)
    axes.set_ylabel("forward passes (%)")
    axes.grid(axis="y")


def svg(figure: Figure, title: str) -> str:
    """A figure as one transparent `<svg>` element for HTML pages, at most as wide as the page.

    Text and axes have the colour of the surrounding text. A page can hold several.

    Args:
        figure: what to draw.
        title: what it shows, for screen readers.

    Raises:
        PlotError: matplotlib is not installed.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style():
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)  # it would apply to the whole page
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("'DejaVu Sans'", "sans-serif")
    unique = "s" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', unique, text)
    text = re.sub(f"{INK}|#000000", "currentColor", text)
    named = html.escape(title)
    head = (
        f'<svg role="img" aria-label="{named}" fill="currentColor" stroke-linejoin="round" '
        'style="max-width: 100%; height: auto"'
    )
    return head + text.removeprefix("<svg").replace(">", f"><title>{named}</title>", 1)
