"""Tuning of the static tree that STAND drafts in, on recorded texts (Song et al. 2025).

As in the paper: draft in a tree that is much too large, count how often each of its nodes is
accepted, and keep the most effective ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Int32
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.stand import SUCCESSORS
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError, RecordingError
from hf_specplug.published import completed
from hf_specplug.published.stand import Stand
from hf_specplug.published.static_tree import Shape, wide_tree
from hf_specplug.replay.progress import Progress, silent
from hf_specplug.replay.recording import Recording
from hf_specplug.replay.simulate import Result, accepted_path, replay


@dataclass(frozen=True)
class Trial:
    """A tree on the held-out texts.

    Attributes:
        label: what it is.
        shape: the static tree; None for the best-first search.
        nodes: its size.
        result: what the replay counted.
    """

    label: str
    shape: Shape | None
    nodes: int
    result: Result


@dataclass(frozen=True)
class Tuned:
    """A tuned tree, and how it did beside others.

    Attributes:
        shape: int32[n] parents (-1 = root) and int32[n] ranks.
        held_out: the number of texts that it was not tuned on.
        trials: of the first tree, a smaller untuned one, the tuned one, and the best-first search.
    """

    shape: Shape
    held_out: int
    trials: list[Trial]

    def to_list(self) -> list[list[int]]:
        """[parent, rank] of each node, as `priors.json` holds them under "stand_tree"."""
        return np.stack(self.shape, axis=1).tolist()  # type: ignore[no-any-return]


def tune(
    recording: Recording,
    drafters: Sequence[str] = ("stand",),
    start: int = 625,
    keep: int = 80,
    progress: Progress = silent,
) -> Tuned:
    """Tune the static tree on every second text, and compare it on the others.

    Args:
        recording: two texts at least.
        drafters: names, of the best-first search to compare with.
        start: nodes of the first tree.
        keep: nodes of the tuned tree.
        progress: shows how many texts are done.

    Raises:
        RecordingError: the recording has fewer than two texts.
        OptionError: an unknown drafter, or `keep` is not in [1, start].

    Example:
        >>> tune(load("my.safetensors"), keep=80).to_list()[0]  # doctest: +SKIP
        [-1, 0]
    """
    if len(recording) < 2:
        raise RecordingError(f"{len(recording)} texts are too few to tune on some and try others")
    if not 1 <= keep <= start:
        raise OptionError(f"{keep} nodes cannot be kept of {start}")
    tuning, held_out = (
        Recording(recording.model, recording.vocab_size, recording.texts[first::2])
        for first in (0, 1)
    )

    def tried(texts: Recording, search: type[TreeSearch], label: str) -> Result:
        made = completed(create(list(drafters)), "stand")
        mixer = Mixer([drafter.name for drafter in made])
        nodes = keep + 1
        return replay(
            texts, made, mixer, nodes, search=search, progress=lambda each: progress(each, label)
        )

    wide, hits = wide_tree(start, SUCCESSORS), np.zeros(start, np.int64)
    tried(tuning, _search(wide, hits), "tuning")
    tuned = most_effective(wide, hits, keep)
    shapes = {"start": wide, "same size, untuned": wide_tree(keep, SUCCESSORS), "tuned": tuned}
    trials = []
    for label, shape in shapes.items():
        size = len(shape[0])
        result = tried(held_out, _search(shape, np.zeros(size, np.int64)), label)
        trials.append(Trial(label, shape, size, result))
    label = "calibrated best-first"
    trials.append(Trial(label, None, keep, tried(held_out, TreeSearch, label)))
    return Tuned(tuned, len(held_out), trials)


def most_effective(shape: Shape, hits: NDArray[np.int64], keep: int) -> Shape:
    """The `keep` nodes of a tree that were accepted most often, as a tree.

    A parent is accepted whenever one of its children is, and stands before it. It is therefore kept
    whenever a child is. Ranks are renumbered: the k-th sibling that is kept gets rank k.

    Args:
        shape: int32[n] parents (-1 = root) and int32[n] ranks.
        hits: int64[n], how often each node was accepted.
        keep: in [1, n].

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
