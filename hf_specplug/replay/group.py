"""Groups: recorded answers to the same prompt are replayed in lockstep, as the rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafting.budget import MAX_NODES, Budget
from hf_specplug.drafting.draft import RowDraft, draft_rows
from hf_specplug.drafting.ensemble import Ensemble
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import RecordingError
from hf_specplug.replay.compare import reading
from hf_specplug.replay.progress import Progress, silent
from hf_specplug.replay.recording import RecordedText, Recording
from hf_specplug.replay.row import ReplayedRow
from hf_specplug.replay.simulate import fail, simulate
from hf_specplug.telemetry.stats import Stats


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The replay of the same texts in two orders.

    Attributes:
        rows: the maximum number of rows of a batch.
        nodes: the maximum number of tokens of a row in a forward pass.
        alone: counters of the texts replayed one after another; what drafters learn is kept.
        batch: counters of the texts replayed in lockstep.
    """

    rows: int
    nodes: int
    alone: Stats
    batch: Stats

    @property
    def gain(self) -> float:
        """Tokens per row and forward pass in lockstep, divided by those alone."""
        return self.batch.accept_length / self.alone.accept_length

    def to_dict(self) -> dict[str, float]:
        """The figures as plain numbers, for JSON."""
        alone, batch = self.alone.accept_length, self.batch.accept_length
        return {"rows": self.rows, "nodes": self.nodes, "alone": alone, "batch": batch}


def simulate_groups(
    recording: Recording,
    drafters: Sequence[str],
    rows: Sequence[int],
    nodes: Sequence[int | str],
    datastores: Sequence[Datastore] = (),
    progress: Progress = silent,
) -> list[GroupResult]:
    """Replay the texts that share a prompt, alone and as batches of some numbers of rows.

    All replays take the same texts, start with drafters that have learned nothing, and keep what
    they learn to the end.

    Args:
        recording: the texts. Those whose prompt occurs once are left out.
        drafters: names.
        rows: numbers of rows of a batch.
        nodes: numbers of tokens of a row in a forward pass.
        datastores: stores to draft from.
        progress: shows how many groups are done.

    Raises:
        OptionError: an unknown drafter or number of nodes.
        RecordingError: no two texts share a prompt, a number of rows is below 1, or `nodes` holds
            "auto": the cost of a batch is not known.

    Example:
        >>> simulate_groups(load("samples"), ["stand"], [8], [16])[0].gain  # doctest: +SKIP
        0.96
    """
    sizes = [size for size in nodes if isinstance(size, int)]
    if len(sizes) < len(nodes):
        raise RecordingError(
            'nodes "auto" needs the cost of a batch, which is unknown; give numbers'
        )
    if min(rows, default=0) < 1:
        raise RecordingError(f"a batch has one row at least, not {min(rows, default=0)}")
    groups = groups_of(recording)
    if not groups:
        raise RecordingError(
            "no two texts of the recording share a prompt; record several answers to each prompt"
        )
    texts = Recording(
        recording.model, recording.vocab_size, [text for group in groups for text in group]
    )
    results = []
    for size in sizes:
        alone = simulate(texts, reading(drafters, datastores), size).total
        for count in rows:
            ensemble = Ensemble(reading(drafters, datastores))
            stats = Stats()
            for group in progress(groups, f"{count} rows @{size}"):
                for start in range(0, len(group), count):
                    batch = group[start : start + count]
                    _replay(batch, recording.vocab_size, ensemble, size, stats)
            results.append(GroupResult(count, size, alone, stats))
    return results


def groups_of(recording: Recording) -> list[list[RecordedText]]:
    """The texts of each prompt that occurs more than once, in the order of the recording."""
    groups: dict[bytes, list[RecordedText]] = {}
    for text in recording:
        groups.setdefault(text.tokens[: text.prompt_length].tobytes(), []).append(text)
    return [group for group in groups.values() if len(group) > 1]


def _replay(
    texts: Sequence[RecordedText], vocab_size: int, ensemble: Ensemble, nodes: int, stats: Stats
) -> None:
    """Replay one batch, as `hf_specplug.batch.decode` decodes it."""
    sets, rows = [], []
    try:
        for text in texts:
            sets.append(ensemble.acquire())  # after the row before has begun: see `batch.run`
            search = TreeSearch(sets[-1].drafters, sets[-1].mixer, vocab_size, fail)
            rows.append(ReplayedRow(text, vocab_size, search))
        for live in _passes(rows):
            budget = Budget(nodes, len(ensemble.drafters), rows=len(live))
            drafts = [RowDraft(row.search, row.root, MAX_NODES, row.depth) for row in live]
            trees, _ = draft_rows(drafts, budget, max(row.length for row in live), nullcontext())
            paths = [row.accepted(tree) for row, tree in zip(live, trees, strict=True)]
            stats.observe_rows(trees, paths, rows[0].search.names)
            for row, path in zip(live, paths, strict=True):
                row.advance(len(path))
    finally:
        for each in sets:
            ensemble.release(each)


def _passes(rows: Sequence[ReplayedRow]) -> Iterator[list[ReplayedRow]]:
    """The rows of each forward pass: those that have not ended."""
    while live := [row for row in rows if not row.finished]:
        yield live
