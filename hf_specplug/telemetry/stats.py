"""The counters of a plug: tokens, forward passes, seconds by phase, fallbacks."""

from __future__ import annotations

import html
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_specplug.drafters.registry import MAX_DRAFTERS
from hf_specplug.kernels.tally import tally
from hf_specplug.telemetry import plots
from hf_specplug.telemetry.calibration import Calibration
from hf_specplug.telemetry.phase import Phase
from hf_specplug.tree import DraftTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASES = ("prefill", "draft", "verify", "accept", "observe")


@dataclass
class Stats:
    """Counters over all calls since the last `reset`. A call counts when it has ended.

    Attributes:
        calls: calls of `generate` that were drafted (as tree or chain).
        forwards: forward passes after the prompt.
        batches: [n] is the number of forward passes of batches in which n rows were generating.
        batch_seconds: the time of these forward passes, drafting and learning included.
        tail_seconds: the part of it in which fewer than half of a batch's rows were generating.
        tokens: tokens that these forward passes emitted, in all rows.
        drafted: draft tokens that were verified.
        accepted: draft tokens that were accepted.
        accepted_per_position: [i] is the number of drafts that were accepted at depth i + 1.
        lengths: [k] is the number of forward passes that emitted k tokens; each row counts.
        widths: [n] is the number of forward passes over n tokens: the last accepted token and
            n - 1 draft tokens. In a batch, n is that of the widest row.
        drafted_by: draft tokens by drafter; a token that two drafters proposed counts for both.
        accepted_by: accepted tokens by drafter, counted likewise.
        seconds: by phase: prefill, draft, verify (the forward pass), accept, observe.
        engines: "mode, engine", such as "tree, eager" -> calls that were drafted so.
        captured: forward passes that were captured or compiled, for this and later calls.
        capture_seconds: what capturing took, in seconds; it is part of "verify".
        fallbacks: reason -> calls that ran as chain or plain because of it.
        dropped: drafter -> the error for which it was dropped.
        reliability: what `calibration()` returns.

    Example:
        >>> stats = Stats()
        >>> stats.forwards, stats.tokens = 10, 31
        >>> stats.accept_length
        3.1
    """

    calls: int = 0
    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    batch_seconds: float = 0.0
    tail_seconds: float = 0.0
    drafted_by: Counter[str] = field(default_factory=Counter)
    accepted_by: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    engines: Counter[str] = field(default_factory=Counter)
    captured: int = 0
    capture_seconds: float = 0.0
    fallbacks: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, str] = field(default_factory=dict)
    reliability: Calibration = field(default_factory=Calibration)

    @property
    def accept_length(self) -> float:
        """Mean tokens per forward pass and row, the model's own (bonus) token included."""
        return self.tokens / (self.row_forwards or 1)

    @property
    def row_forwards(self) -> int:
        """Forward passes, counted once for each row that was generating."""
        return self.forwards + sum((n - 1) * count for n, count in self.batches.items())

    @property
    def tail(self) -> float:
        """The share of a batch's time in which fewer than half of its rows were generating."""
        return self.tail_seconds / (self.batch_seconds or 1.0)

    def calibration(self) -> Calibration:
        """Predicted against realised acceptance of drafted tokens; a plot in notebooks."""
        return self.reliability

    def plot(self) -> Figure:
        """The counters as a matplotlib figure of six panels; notebooks show it.

        Raises:
            PlotError: matplotlib is not installed.

        Example:
            >>> plug.stats.plot().savefig("stats.png")
        """
        return plots.stats_figure(self.to_dict())

    def reset(self) -> None:
        """Set all counters to zero."""
        self.__init__()  # type: ignore[misc]

    @property
    def prepared(self) -> int:
        """Deprecated: `captured`."""
        warnings.warn("Stats.prepared is now captured", FutureWarning, stacklevel=2)
        return self.captured

    @property
    def preparing(self) -> float:
        """Deprecated: `capture_seconds`."""
        warnings.warn("Stats.preparing is now capture_seconds", FutureWarning, stacklevel=2)
        return self.capture_seconds

    def phase(self, name: str) -> Phase:
        """Context manager that adds the time spent inside to `seconds[name]`."""
        return Phase(self.seconds, name)

    def add_captured(self, count: int, seconds: float) -> None:
        """Count forward passes that were captured or compiled."""
        self.captured += count
        self.capture_seconds += seconds

    def observe(self, tree: DraftTree, visited: Sequence[int], names: Sequence[str]) -> None:
        """Count a verified tree.

        Args:
            tree: the draft.
            visited: indices of the accepted nodes; 0 = root, i + 1 = node i of the tree.
            names: of the drafters, by source bit.
        """
        self.forwards += 1
        self.widths[len(tree) + 1] += 1
        self._count(tree, visited, names)

    def observe_rows(
        self,
        trees: Sequence[DraftTree],
        visited: Sequence[Sequence[int]],
        names: Sequence[str],
    ) -> None:
        """Count the verified trees of a batch, one per row; see `observe`."""
        self.forwards += 1
        self.batches[len(trees)] += 1
        self.widths[max(len(tree) for tree in trees) + 1] += 1
        for tree, path in zip(trees, visited, strict=True):
            self._count(tree, path, names)

    def add_batch_seconds(self, seconds: float, rows: int, of: int) -> None:
        """Count the time of a forward pass in which `rows` of `of` rows were generating."""
        self.batch_seconds += seconds
        self.tail_seconds += seconds if 2 * rows < of else 0.0

    def _count(self, tree: DraftTree, visited: Sequence[int], names: Sequence[str]) -> None:
        self.tokens += len(visited)
        self.lengths[len(visited)] += 1
        hits = len(visited) - 1
        self.drafted += len(tree)
        self.accepted += hits
        while len(self.accepted_per_position) < hits:
            self.accepted_per_position.append(0)
        for position in range(hits):
            self.accepted_per_position[position] += 1
        if not len(tree):
            return
        by_drafter = np.empty((2, MAX_DRAFTERS), np.int64)
        path = np.array(visited, np.int32)
        tally(tree.parents, tree.probs, tree.sources, path, self.reliability.bins, by_drafter)
        for name, drafted, accepted in zip(names, *by_drafter.tolist(), strict=False):
            self.drafted_by[name] += drafted
            self.accepted_by[name] += accepted

    def add(self, call: Stats) -> None:
        """Add the counters of one call."""
        counters = ("calls", "forwards", "tokens", "drafted", "accepted", "captured")
        for name in (*counters, "capture_seconds", "batch_seconds", "tail_seconds"):
            setattr(self, name, getattr(self, name) + getattr(call, name))
        for name in ("lengths", "widths", "batches", "drafted_by", "accepted_by"):
            getattr(self, name).update(getattr(call, name))
        for name in ("engines", "fallbacks"):
            getattr(self, name).update(getattr(call, name))
        for phase, seconds in call.seconds.items():
            self.seconds[phase] += seconds
        hits = zip_longest(self.accepted_per_position, call.accepted_per_position, fillvalue=0)
        self.accepted_per_position = [ours + theirs for ours, theirs in hits]
        self.dropped.update(call.dropped)
        self.reliability.add(call.reliability)

    def to_dict(self) -> dict[str, Any]:
        """All counters as plain numbers, strings, lists and dicts, for JSON.

        "prepared" and "preparing" are `captured` and `capture_seconds`: reports of earlier versions
        have these keys.
        """
        return {
            "calls": self.calls,
            "forwards": self.forwards,
            "tokens": self.tokens,
            "accept_length": self.accept_length,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "accepted_per_position": list(self.accepted_per_position),
            "lengths": {str(k): self.lengths[k] for k in sorted(self.lengths)},
            "widths": {str(n): self.widths[n] for n in sorted(self.widths)},
            "batches": {str(n): self.batches[n] for n in sorted(self.batches)},
            "batch_seconds": self.batch_seconds,
            "tail_seconds": self.tail_seconds,
            "drafted_by": dict(self.drafted_by),
            "accepted_by": dict(self.accepted_by),
            "seconds": dict(self.seconds),
            "engines": dict(self.engines),
            "prepared": self.captured,
            "preparing": self.capture_seconds,
            "fallbacks": dict(self.fallbacks),
            "dropped": dict(self.dropped),
            "calibration": self.reliability.to_dict(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """(label, text) of each figure, for tables."""
        steps = self.forwards or 1
        each = " and row" if self.batches else ""
        rows = [
            ("calls", f"{self.calls}"),
            ("tokens / forwards", f"{self.tokens} / {self.forwards}"),
            ("accept length", f"{self.accept_length:.2f} tokens per forward{each}, bonus included"),
            ("accepted", f"{self.accepted} of {self.drafted} drafted"),
        ]
        if self.batches:
            rows += self._batch_rows()
        rows += [
            (f"  {name}", f"{self.accepted_by[name]} of {self.drafted_by[name]}")
            for name in self.drafted_by
            if self.drafted_by[name]
        ]
        rows += [
            (f"ms {name}", f"{1e3 * self.seconds[name] / steps:.2f} per forward")
            for name in PHASES[1:]
        ]
        if self.captured:
            text = f"{self.captured} forward passes in {self.capture_seconds:.1f} s, once"
            rows.append(("captured", text))
        rows += [("engine", f"{count} x {name}") for name, count in self.engines.items()]
        rows += [("fallback", f"{count} x {why}") for why, count in self.fallbacks.items()]
        rows += [("dropped", f"{name}: {why}") for name, why in self.dropped.items()]
        return rows

    def _batch_rows(self) -> list[tuple[str, str]]:
        """The lines about batches of `rows`."""
        forwards, each = sum(self.batches.values()), self.row_forwards
        mean = sum(n * count for n, count in self.batches.items()) / forwards
        width = sum(n * count for n, count in self.widths.items()) / self.forwards
        drafted, accepted = self.drafted / each, self.accepted / each
        return [
            ("batches", f"{forwards} forwards over {mean:.1f} rows, at most {max(self.batches)}"),
            ("  width", f"{width:.1f} tokens per row, padding included"),
            ("  per row", f"{accepted:.2f} accepted of {drafted:.2f} drafted per forward"),
            ("  tail", f"{self.tail:.0%} of the time with fewer than half of the rows"),
        ]

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    def _repr_html_(self) -> str:
        """A table, for notebooks; `plot()` draws the figures."""
        body = "".join(
            f"<tr><td style='text-align:left'>{html.escape(label)}</td>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for label, text in self.rows()
        )
        return f"<table>{body}</table>"
