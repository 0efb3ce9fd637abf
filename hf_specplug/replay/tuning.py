"""`specplug tune-tree`: the static tree that STAND drafts in, cut to what a recording shows to pay.

As in the paper (Song et al. 2025): draft in a tree that is much too large, count which of its nodes
are accepted, and keep the most effective ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hf_specplug.drafters.contract import Int32
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.stand import SUCCESSORS
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError, RecordingError
from hf_specplug.published import completed
from hf_specplug.published.stand import Stand
from hf_specplug.published.static_tree import Shape, depths, wide_tree
from hf_specplug.replay.recording import RecordedText, Recording, load
from hf_specplug.replay.simulate import Result, accepted_path, replay


def run(path: str, drafters: str, start: int, keep: int, out: str | None) -> None:
    """Tune on every second text, compare on the others, and write `out`.

    `out` is a JSON list of [parent, rank], -1 = root: what `priors.json` holds as "stand_tree".

    Raises:
        RecordingError: the recording cannot be used.
        OptionError: an unknown drafter, or a size that cannot be.
    """
    recording = load(path)
    if len(recording) < 2:
        raise RecordingError(f"{path} has {len(recording)} texts: too few to tune and to try")
    if not 1 <= keep <= start:
        raise OptionError(f"{keep} nodes cannot be kept of {start}")
    tuning, held_out = (
        Recording(recording.model, recording.vocab_size, recording.texts[place::2])
        for place in (0, 1)
    )
    names = [name.strip() for name in drafters.split(",") if name.strip()]
    console, progress_bars = Console(highlight=False), Console(stderr=True)

    def tried(texts: Recording, search: type[TreeSearch], label: str) -> Result:
        def progress(traces: Iterable[RecordedText]) -> Iterable[RecordedText]:
            return track(traces, label, total=len(texts), console=progress_bars, transient=True)

        made = completed(create(names), "stand")
        mixer = Mixer([drafter.name for drafter in made])
        return replay(texts, made, mixer, keep + 1, search=search, progress=progress)

    wide = wide_tree(start, SUCCESSORS)
    hits = np.zeros(start, np.int64)
    tried(tuning, _search(wide, hits), "tuning")
    tuned = most_effective(wide, hits, keep)
    table = Table(title=f"{path}: {len(held_out)} held-out texts", padding=(0, 0, 0, 1))
    table.add_column("tree", no_wrap=True)
    for column in ("nodes", "tokens\nper step", "drafted\nper step", "nodes by depth"):
        table.add_column(column, justify="left" if column.endswith("depth") else "right")
    shapes = {"start": wide, "same size, untuned": wide_tree(keep, SUCCESSORS), "tuned": tuned}
    for label, shape in shapes.items():
        result = tried(held_out, _search(shape, np.zeros(len(shape[0]), np.int64)), label)
        levels = " ".join(map(str, np.bincount(depths(shape[0]))[1:]))
        table.add_row(label, str(len(shape[0])), *_figures(result), levels)
    label = "calibrated best-first"
    table.add_row(label, str(keep), *_figures(tried(held_out, TreeSearch, label)), "as it comes")
    console.print(table)
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(np.stack(tuned, axis=1).tolist(), file)


def most_effective(shape: Shape, hits: NDArray[np.int64], keep: int) -> Shape:
    """The `keep` nodes of a tree that were accepted most often, as a tree.

    A parent is accepted whenever a child is, and comes before it, so it is kept whenever a child
    is. Siblings close ranks: the k-th that is kept gets rank k.

    Example:
        >>> shape = np.array([-1, -1, 0, 1]), np.array([0, 1, 0, 0])
        >>> parents, rank = most_effective(shape, np.array([3, 5, 1, 4]), 2)
        >>> parents.tolist(), rank.tolist()
        ([-1, 0], [0, 0])
    """
    kept = np.sort(np.argsort(-hits, kind="stable")[:keep])
    parents, rank = shape[0][kept], shape[1][kept]
    closed = [int(((parents == p) & (rank < r)).sum()) for p, r in zip(parents, rank, strict=True)]
    moved = np.where(parents < 0, -1, np.searchsorted(kept, parents))
    return moved.astype(np.int32), np.array(closed, np.int32)


def _search(tree: Shape, hits: NDArray[np.int64]) -> type[Stand]:
    """STAND in another tree; counts accepted nodes in `hits`."""

    class Counting(Stand):
        @classmethod
        def shape(cls) -> Shape:
            return tree

        def learn(self, emitted: Int32) -> None:
            hits[self.filled[np.array(accepted_path(self.draft, emitted)[1:], np.intp) - 1]] += 1

    return Counting


def _figures(result: Result) -> tuple[str, str]:
    stats = result.total
    return f"{stats.accept_length:.3f}", f"{stats.drafted / max(stats.forwards, 1):.1f}"
