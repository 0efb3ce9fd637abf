"""Sets of drafters, tree sizes and papers' drafts, compared on one recording."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_specplug import __version__
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import give, readers
from hf_specplug.replay.progress import Progress, silent
from hf_specplug.replay.recording import Recording
from hf_specplug.replay.simulate import Cost, Result, simulate


def compare(
    recording: Recording,
    drafters: Sequence[str],
    sizes: Sequence[int | str],
    datastores: Sequence[Datastore] = (),
    cost: Cost | None = None,
    published: str | None = None,
    leave_one_out: bool = False,
    progress: Progress = silent,
) -> dict[str, Result]:
    """Replay a recording once for each set of drafters and each size.

    Args:
        recording: the texts.
        drafters: names; those that read the given `datastores` are added.
        sizes: tokens per forward pass, or "auto".
        datastores: stores to draft from.
        cost: the cost curve of a forward pass.
        published: also draft as this paper does.
        leave_one_out: also replay each drafter alone, and all but each.
        progress: shows how many texts are done.

    Returns:
        "DRAFTERS @SIZE" -> result

    Raises:
        OptionError: an unknown drafter, size or paper.
        RecordingError: a size is "auto" without a cost curve.

    Example:
        >>> list(compare(recording, ["context", "stand"], [16]))  # doctest: +SKIP
        ['context+stand @16']
    """
    names = [*drafters, *(name for name in readers(datastores) if name not in drafters)]
    results: dict[str, Result] = {}
    for label, group, size, paper in _plan(names, sizes, leave_one_out, published):
        results[label] = simulate(
            recording,
            reading(group, datastores),
            size,
            cost,
            paper,
            lambda texts, label=label: progress(texts, label),  # type: ignore[misc]
        )
    return results


def reading(names: Sequence[str], datastores: Sequence[Datastore]) -> list[Drafter]:
    """New drafters by name; those that read datastores have the given ones."""
    drafters = create(names)
    give(datastores, drafters)
    return drafters


def report(
    path: str, recording: Recording, cost: str | None, results: Mapping[str, Result]
) -> dict[str, Any]:
    """All figures of `compare`, and what they were measured with, for JSON."""
    return {
        "recording": path,
        "model": recording.model,
        "cost": cost,
        "machine": platform.machine(),
        "hf_specplug": __version__,
        "results": {label: result.to_dict() for label, result in results.items()},
    }


def _plan(
    names: list[str], sizes: Sequence[int | str], leave_one_out: bool, published: str | None
) -> Iterator[tuple[str, list[str], int | str, str | None]]:
    """(label, drafters, size, paper) of each replay."""
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
