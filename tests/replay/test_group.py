"""Groups in lockstep: what they count, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_specplug.cli import app
from hf_specplug.errors import RecordingError
from hf_specplug.replay.group import groups_of, simulate_groups
from hf_specplug.replay.recording import Recording
from tests.replay.test_simulate import recording

PROMPT = 50


def samples(count: int) -> Recording:
    """Different answers to one prompt, and one text of another prompt."""
    texts = recording("samples", count + 1)
    first, *others, last = texts.texts
    same = []
    for text in others:
        tokens = text.tokens.copy()
        tokens[:PROMPT] = first.tokens[:PROMPT]
        same.append(replace(text, tokens=tokens))
    return Recording(texts.model, texts.vocab_size, [first, *same, last])


def test_groups_are_the_texts_of_equal_prompts() -> None:
    texts = samples(4)
    (group,) = groups_of(texts)
    assert group == list(texts.texts[:4])


def test_one_row_is_the_replay_alone() -> None:
    """A batch of one row drafts as the texts one after another do; all count every token."""
    texts = samples(5)
    results = simulate_groups(texts, ["context", "stand", "recycling"], [1, 2, 8], [8])
    tokens = sum(len(text.answer) - 1 for text in texts.texts[:5])
    assert [result.rows for result in results] == [1, 2, 8]
    assert all(result.alone.tokens == result.batch.tokens == tokens for result in results)
    assert results[0].batch.lengths == results[0].alone.lengths
    assert results[0].gain == 1
    assert set(results[1].batch.batches) == {1, 2}
    assert max(results[2].batch.batches) == 5


def test_what_cannot_be_replayed() -> None:
    with pytest.raises(RecordingError, match="no two texts"):
        simulate_groups(recording("random"), ["context"], [2], [8])
    with pytest.raises(RecordingError, match="cost of a batch"):
        simulate_groups(samples(3), ["context"], [2], ["auto"])
    with pytest.raises(RecordingError, match="one row at least, not 0"):
        simulate_groups(samples(3), ["context"], [0], [8])


def test_command(tmp_path: Path) -> None:
    path, out = tmp_path / "r", tmp_path / "o.json"
    samples(4).save(path)
    options = "--drafters context,stand --nodes 8,16 --group 2,4 --out"
    run = CliRunner().invoke(app, ["simulate", str(path), *options.split(), str(out)])
    assert run.exit_code == 0, run.output
    assert "x alone" in run.output
    figures = json.loads(out.read_text())
    assert [(each["rows"], each["nodes"]) for each in figures] == [(2, 8), (4, 8), (2, 16), (4, 16)]
    run = CliRunner().invoke(app, ["simulate", str(path), "--group", "many"])
    assert run.exit_code == 1
    assert "numbers of rows" in run.output
