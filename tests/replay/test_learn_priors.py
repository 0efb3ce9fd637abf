"""Learning of priors: what is counted, what is smoothed, and what the command writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hf_specplug.cli import app
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32
from hf_specplug.drafters.registry import REGISTERED, create, registry
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.errors import OptionError
from hf_specplug.replay.learn_priors import FILE, GRIDS, learn, smoothed
from hf_specplug.replay.live import replay_live
from hf_specplug.replay.record import record_text
from hf_specplug.replay.recording import Recording
from tests.helpers.zoo import make
from tests.replay.test_simulate import recording

SHIPPED = json.loads(FILE.read_text(encoding="utf-8"))


def test_every_table_of_buckets_has_its_drafters_size() -> None:
    for name, grids in GRIDS.items():
        assert sum(rows * columns for rows, columns in grids) == len(SHIPPED[name])
        assert name in registry()


def test_sparse_buckets_lean_on_weaker_evidence() -> None:
    hits = np.array([[10.0, 0.0], [0.0, 0.0], [900.0, 0.0]])
    seen = np.array([[100.0, 0.0], [0.0, 0.0], [1000.0, 0.0]])
    rates = smoothed(hits, seen)
    assert rates[1, 0] == pytest.approx(rates[0, 0])  # nothing seen: what the row before has
    assert rates[2, 0] == pytest.approx(0.9, abs=0.02)
    assert (rates > 0).all()


def test_regular_texts_teach_high_priors() -> None:
    """The true token is always in second place of a row; no other place ever holds it."""
    priors, lengths = learn(recording("repeats"), ["recycling"], passes=2)
    assert lengths[1] >= lengths[0] > 1
    table = np.array(priors["recycling"]).reshape(8, 8)
    assert table.shape == np.array(SHIPPED["recycling"]).reshape(8, 8).shape
    assert table.argmax() // 8 == 1  # a row for each rank
    assert np.sort(table.ravel())[-2] < 0.1 < 0.4 < table.max()
    assert set(priors) == set(SHIPPED)
    assert np.shape(priors["mixer"]["drafters"]["recycling"]) == (4, 3)
    weights, shipped = priors["mixer"]["drafters"], SHIPPED["mixer"]["drafters"]
    assert {name for name in shipped if weights[name] != shipped[name]} == {"recycling"}
    assert priors["mixer"]["noise"] == SHIPPED["mixer"]["noise"]  # no noise was known
    dull, _ = learn(recording("random"), ["recycling"], passes=1)
    assert max(dull["recycling"]) < table.max()


def test_only_one_drafter_changes() -> None:
    priors, _ = learn(recording("repeats"), ["context", "recycling"], only="recycling", passes=1)
    assert priors["context"] == SHIPPED["context"]
    assert priors["recycling"] != SHIPPED["recycling"]
    mixer, shipped = priors["mixer"], SHIPPED["mixer"]
    changed = {
        name for name in mixer["drafters"] if mixer["drafters"][name] != shipped["drafters"][name]
    }
    assert changed == {"recycling"}
    assert {**mixer, "drafters": {}} == {**shipped, "drafters": {}}
    with pytest.raises(OptionError, match="not one of the drafters context"):
        learn(recording("repeats"), ["context"], only="recycling")


class Period(Drafter):
    """Proposes the token 37 places ago, with which "repeats" goes on."""

    name: ClassVar[str] = "mine"

    def __init__(self) -> None:
        self.priors = np.array([0.2], np.float32)

    def begin(self, context: Context) -> None:
        self.context = context

    def expand(self, frontier: Frontier) -> Int32:
        rows = [[0, self.context.tokens[-37], 0]] if 0 in frontier.nodes else []
        return np.array(rows, np.int32).reshape(-1, 3)


def test_a_drafter_of_ones_own_is_learned_beside_the_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(REGISTERED, "mine", Period)
    priors, _ = learn(recording("repeats"), ["context", "mine"], only="mine", passes=2)
    assert priors["mine"][0] > 0.7
    assert set(priors) - set(SHIPPED) == {"mine"}
    assert set(priors["mixer"]["drafters"]) - set(SHIPPED["mixer"]["drafters"]) == {"mine"}


def test_command(tmp_path: Path) -> None:
    path, out = tmp_path / "r", tmp_path / "priors.json"
    recording("repeats", 2).save(path)
    arguments = ["learn-priors", str(path), "--drafters", "context", "--passes", "1"]
    run = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert "pass 1: accept length" in run.output
    written = json.loads(out.read_text(encoding="utf-8"))
    assert len(written["context"]) == len(create(["context"])[0].priors)
    assert set(written) == set(SHIPPED)


def test_a_model_verifies_the_last_pass(tmp_path: Path) -> None:
    """Drafters learn from rejected drafts, too: what they know differs from a replay's."""
    model = make("llama")
    prompts = [np.array([5, 6, 7, 8, 5, 6, 7, 8]), np.arange(3, 12)]
    texts = []
    for number, ids in enumerate(prompts):
        inputs = torch.from_numpy(ids)[None]
        tokens = model.generate(inputs, max_new_tokens=40, do_sample=False)[0].tolist()
        texts.append(record_text(model, "own", f"text {number}", tokens, len(ids)))
    own = Recording("llama", model.config.vocab_size, texts)
    names = ["context", "recycling"]
    replayed, lengths = learn(own, names, passes=1)
    live, with_live = learn(own, names, passes=1, model=model)
    assert with_live[:1] == lengths
    assert len(with_live) == 2
    assert with_live[1] >= 1
    assert live["recycling"] != replayed["recycling"]
    assert np.shape(live["mixer"]["drafters"]["recycling"]) == (4, 3)


def test_live_replay_gives_the_recorded_answers_whatever_the_model_would_say() -> None:
    model = make("llama")
    tokens = np.random.default_rng(0).integers(5, 60, 50).tolist()
    forced = Recording(
        "llama", model.config.vocab_size, [record_text(model, "any", "text 0", tokens, 10)]
    )
    drafters = create(["context", "recycling"])
    stats = replay_live(model, forced, drafters, Mixer(["context", "recycling"]), 8)
    assert stats.tokens == 40 - 1  # the first one comes from the prompt's forward pass
    assert stats.drafted > 0
