"""Statistics: the counts are right, and readable."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug import DraftTree, Stats
from hf_specplug.telemetry.calibration import BINS
from tests.helpers import twins
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import make, prompt


def tree(parents: list[int], sources: list[int]) -> DraftTree:
    n = len(parents)
    return DraftTree(
        np.arange(n, dtype=np.int32),
        np.array(parents, np.int32),
        np.full(n, 0.5, np.float32),
        np.array(sources, np.uint16),
    )


def test_counts() -> None:
    stats = Stats()
    stats.observe(tree([-1, -1, 0], [1, 2, 3]), [0, 1, 3], ["a", "b"])
    stats.observe(tree([-1], [2]), [0], ["a", "b"])
    stats.observe(tree([], []), [0], ["a", "b"])
    assert (stats.forwards, stats.tokens, stats.drafted, stats.accepted) == (3, 5, 4, 2)
    assert stats.accept_length == 5 / 3
    assert stats.accepted_per_position == [1, 1]
    assert dict(stats.lengths) == {3: 1, 1: 2}
    assert dict(stats.widths) == {4: 1, 2: 1, 1: 1}
    assert list(stats.to_dict()["widths"].items()) == [("1", 1), ("2", 1), ("4", 1)]
    assert dict(stats.drafted_by) == {"a": 2, "b": 3}
    assert dict(stats.accepted_by) == {"a": 2, "b": 1}
    stats.reset()
    assert stats == Stats()


def test_batches() -> None:
    """Each row counts; the tail is the time in which fewer than half of them are left."""
    stats, one, none = Stats(calls=1), tree([-1, 0], [1, 1]), tree([], [])
    stats.observe_rows([one, one, none, none], [[0, 1, 2], [0, 1], [0], [0]], ["a"])
    stats.observe_rows([one, none], [[0], [0]], ["a"])
    stats.observe_rows([one], [[0, 1]], ["a"])
    for seconds, rows in ((3.0, 4), (2.0, 2), (1.0, 1)):
        stats.add_batch_seconds(seconds, rows, of=4)
    assert (stats.forwards, stats.row_forwards, stats.tokens) == (3, 7, 11)
    assert stats.accept_length == 11 / 7
    assert dict(stats.batches) == {4: 1, 2: 1, 1: 1}
    assert stats.tail == 1 / 6
    text = str(stats)
    assert "3 forwards over 2.3 rows, at most 4" in text
    assert "3.0 tokens per row" in text
    assert f"{4 / 7:.2f} accepted of {8 / 7:.2f} drafted per forward" in text
    assert "17% of the time" in text
    both = Stats()
    both.add(stats)
    both.observe(none, [0], ["a"])  # a call with one row
    assert (both.row_forwards, both.accept_length, both.tail) == (8, 12 / 8, 1 / 6)
    heights = [bar.get_height() for axes in both.plot().axes[:2] for bar in axes.patches]
    assert max(heights) <= 100
    assert json.loads(json.dumps(both.to_dict()))["tail_seconds"] == 1.0


NODES = st.lists(
    st.tuples(
        st.integers(0, 8), st.floats(0.0009765625, 1.0, width=32), st.integers(0, (1 << 16) - 1)
    ),
    max_size=9,
)


@given(NODES, st.data())
def test_nodes_are_counted_by_prediction_and_by_drafter(nodes: Any, data: st.DataObject) -> None:
    """`kernels.tally.tally` and its twin, on any tree and any accepted path."""
    parents = [min(parent, i) - 1 for i, (parent, _, _) in enumerate(nodes)]
    draft = DraftTree(
        np.arange(len(nodes), dtype=np.int32),
        np.array(parents, np.int32),
        np.array([prob for _, prob, _ in nodes], np.float32),
        np.array([sources for _, _, sources in nodes], np.uint16),
    )
    visited = [0]
    while below := [i + 1 for i, parent in enumerate(parents) if parent + 1 == visited[-1]]:
        if data.draw(st.booleans()):
            break
        visited.append(data.draw(st.sampled_from(below)))
    names = [f"drafter {bit}" for bit in range(16)]
    stats = Stats()
    for _ in range(2):
        stats.observe(draft, visited, names)
    bins, by_drafter = twins.tally(draft, visited, BINS)
    np.testing.assert_allclose(stats.calibration().bins, 2 * np.array(bins), rtol=1e-6)
    if nodes:
        drafted, accepted = by_drafter
        assert [stats.drafted_by[name] for name in names] == [2 * count for count in drafted]
        assert [stats.accepted_by[name] for name in names] == [2 * count for count in accepted]


def test_calls_add_up() -> None:
    """The same as if they had been counted together."""
    steps = [
        (tree([-1, -1, 0], [1, 2, 3]), [0, 1, 3]),
        (tree([-1], [2]), [0]),
        (tree([-1, 0, 1], [1, 1, 1]), [0, 1, 2, 3]),
    ]
    together, added = Stats(calls=3, captured=3, capture_seconds=1.5), Stats()
    for number, (draft, visited) in enumerate(steps):
        call = Stats(calls=1, captured=1, capture_seconds=0.5)
        for stats in (together, call):
            stats.observe(draft, visited, ["a", "b"])
            stats.seconds["draft"] += 1.0
            stats.fallbacks["reason"] += number
            stats.engines["tree, eager"] += number
            stats.dropped["a"] = f"error {number}"
        added.add(call)
    assert added == together
    assert added.to_dict() == together.to_dict()


def test_names_of_version_0_1_warn() -> None:
    stats = Stats(captured=3, capture_seconds=1.5)
    with pytest.warns(FutureWarning, match="now captured"):
        assert stats.prepared == 3
    with pytest.warns(FutureWarning, match="now capture_seconds"):
        assert stats.preparing == 1.5
    counters = stats.to_dict()
    assert (counters["prepared"], counters["preparing"]) == (3, 1.5)


def test_of_a_real_call() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings: dict[str, Any] = {"max_new_tokens": 33, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    drafter = Replay(new_tokens(expected, 33), wrong=lambda p: p % 4 == 0, siblings=0)
    _, _, plug = plugged(model, inputs, drafter, nodes=20, **settings)
    stats = plug.stats
    assert (stats.calls, stats.tokens, stats.forwards) == (1, 32, 8)
    assert stats.accepted_per_position == [8, 8, 8]
    assert dict(stats.lengths) == {4: 8}
    assert sum(width * count for width, count in stats.widths.items()) == 24 + 8
    assert stats.drafted_by == stats.accepted_by == {"replay": 24}
    assert set(stats.seconds) == {"prefill", "draft", "verify", "accept", "observe"}
    assert all(seconds > 0 for seconds in stats.seconds.values())
    assert stats.engines == {"tree, eager": 1}
    again = json.loads(json.dumps(stats.to_dict()))
    assert again["accept_length"] == 4.0
    assert again["engines"] == {"tree, eager": 1}
    text = repr(stats)
    assert "32 / 8" in text
    assert "4.00 tokens per forward" in text
    assert "24 of 24" in text
    assert "32 / 8" in stats._repr_html_()
    assert len(stats.plot().axes) == 6


def test_html_is_escaped() -> None:
    stats = Stats()
    stats.fallbacks["<script>"] += 1
    assert "<script>" not in stats._repr_html_()
