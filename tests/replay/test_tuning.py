"""STAND as published: the static tree, and the command that tunes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_specplug import SpecPlug
from hf_specplug.cli import app
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.stand import SUCCESSORS, StandDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.published import completed
from hf_specplug.published.stand import Stand
from hf_specplug.published.static_tree import depths, wide_tree
from hf_specplug.replay.tuning import most_effective
from tests.drafters.test_stand import VOCAB, taught
from tests.helpers.twins import is_chain
from tests.replay.test_simulate import recording


def fail(_: Drafter, error: Exception) -> None:
    raise error


def test_the_published_tree() -> None:
    drafter, context = taught(letters=12, length=600)
    search, again = (Stand([drafter], Mixer(["stand"]), VOCAB, fail) for _ in range(2))
    parents, rank = search.shape()
    assert len(parents) == len(learned("stand_tree")) == 80
    assert (parents < np.arange(80)).all()
    assert len(set(zip(parents.tolist(), rank.tolist(), strict=True))) == 80
    assert rank.max() < SUCCESSORS
    draft = search.grow(context.last, 16, 9)
    assert 16 < len(draft) <= 80  # whatever the limit: the paper's tree is static
    edges = list(zip(draft.parents.tolist(), draft.tokens.tolist(), strict=True))
    assert len(set(edges)) == len(edges)
    above = parents[search.filled]
    assert (draft.parents == np.where(above < 0, -1, np.searchsorted(search.filled, above))).all()
    pool = np.zeros((len(draft) + 1, 2), np.int32)
    pool[1:, 0], pool[1:, 1] = draft.tokens, draft.parents + 1
    for node, (parent, token) in enumerate(edges):
        ids, probs = drafter.distribution(pool, parent + 1)
        assert draft.probs[node] == probs[ids.tolist().index(token)]
    assert again.grow(context.last, 16, 9).tokens.tolist() == draft.tokens.tolist()
    assert search.grow(context.last, 16, 9).tokens.tolist() == draft.tokens.tolist()
    assert search.grow(context.last, 16, 2).depths().max() <= 2
    assert is_chain(search.grow(context.last, 16, 9, chain=True))
    assert len(search.grow(context.last, 0, 9)) == len(search.filled) == 0


def test_a_paper_brings_its_drafter() -> None:
    plug = SpecPlug("context", published="stand")
    assert [drafter.name for drafter in plug.drafters] == ["context", "stand"]
    given = [StandDrafter(8)]
    assert completed([*given], "stand") == given
    assert completed([*given], None) == given


SIZES = st.integers(1, 120)


@given(SIZES, st.integers(1, 10), st.data())
def test_trees_stay_trees(size: int, ranks: int, data: st.DataObject) -> None:
    parents, rank = wide_tree(size, ranks)
    assert len(set(zip(parents.tolist(), rank.tolist(), strict=True))) == size
    assert (parents < np.arange(size)).all()
    assert (rank < ranks).all()
    hits = np.zeros(size, np.int64)
    for node in data.draw(st.lists(st.integers(0, size - 1), max_size=40)):
        while node >= 0:
            hits[node] += 1
            node = int(parents[node])
    keep = data.draw(st.integers(1, size))
    kept, closed = most_effective((parents, rank), hits, keep)
    assert len(kept) == keep
    assert (kept < np.arange(keep)).all()
    assert sorted(depths(kept).tolist()) == depths(kept)[np.argsort(depths(kept))].tolist()
    for parent in {*kept.tolist()}:
        assert sorted(closed[kept == parent].tolist()) == list(range((kept == parent).sum()))


def test_tune_tree(tmp_path: Path) -> None:
    path, out = tmp_path / "r", tmp_path / "tree.json"
    recording("repeats").save(path)
    arguments = ["tune-tree", str(path), "--start", "60", "--keep", "12", "--out", str(out)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    for word in ("tuned", "untuned", "calibrated best-first", "held-out"):
        assert word in run.output
    nodes = json.loads(out.read_text())
    assert len(nodes) == 12
    assert all(-1 <= parent < i for i, (parent, _) in enumerate(nodes))
    # the true token has a probability like all others: only depth can pay for so regular a text
    assert np.isin([0, 1], [rank for _, rank in nodes]).all()


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (4, ["--keep", "70", "--start", "60"], "70 nodes cannot be kept of 60"),
        (1, [], "too few to tune"),
        (4, ["--drafters", "nobody"], "no drafter is called"),
    ],
)
def test_tune_tree_says_what_is_wrong(
    tmp_path: Path, texts: int, arguments: list[str], message: str
) -> None:
    path = tmp_path / "r"
    recording("random", texts, 60).save(path)
    run = CliRunner().invoke(app, ["tune-tree", str(path), *arguments])
    assert run.exit_code == 1
    assert message in " ".join(run.output.split())
