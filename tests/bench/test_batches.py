"""`specplug bench --batch`: batches of prompts and of samples."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import LogitsProcessor, LogitsProcessorList

from hf_specplug.bench import methods, page, tables
from hf_specplug.bench.batches import padded
from hf_specplug.bench.generation import _answer
from tests.bench.test_bench import add_method, run

OWN = "specplug:nodes=8:pack=no"


def test_samples_of_each_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, batch=[1, 4], samples=4, temperature=0.8)
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert not found["rows"]
    single, four = found["batches"]
    assert (single["rows"], four["rows"]) == (1, 4)
    assert [len(part["calls"]) for part in (single, four)] == [8, 2]  # two questions
    assert [call["name"] for call in four["calls"]] == ["1", "2"]
    assert not single["failed"]
    assert set(four["failed"]) == {"prompt-lookup"}
    for part in (single, four):
        stats, calls = part["stats"][OWN], part["calls"]
        assert stats["calls"] == len(calls)
        for call in calls:
            plain, own = call["runs"]["plain"], call["runs"][OWN]
            assert own["differs_at"] is None
            assert plain["tokens"] == plain["forwards"] == own["tokens"] >= own["forwards"]
        passes = sum(call["runs"][OWN]["forwards"] for call in calls)
        assert passes == sum(stats["lengths"].values()) + 8  # a prompt for each row
    _is_shown(found, tmp_path, capsys)


def _is_shown(found: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the tables, in words where a method takes one row only, and on the page."""
    tables.show(found, Console(width=200))
    text = capsys.readouterr().out
    assert re.search(r"4, prompt-lookup\s*│\s*│\s*one row only", text)
    assert re.search(rf"4, {OWN}.*2 of 2", text)
    assert "4 samples of each prompt" in text
    page.write(str(tmp_path / "batches.html"), found)
    text = (tmp_path / "batches.html").read_text()
    assert text.count("<figure>") == text.count("<svg") == 1 + 2
    assert "assisted generate is only supported" in text


class AnotherToken(LogitsProcessor):  # type: ignore[misc]
    """Makes the model say one token only, in the last row of a batch."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[-1, 100] += 100.0
        return scores


def test_different_prompts_and_a_row_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"logits_processor": LogitsProcessorList([AnotherToken()])}
    add_method(monkeypatch, "other", methods.Method("other", settings))
    (part,) = run(tmp_path, batch=[2], methods=f"other,{OWN}")["batches"]
    (call,) = part["calls"]
    assert call["runs"]["other"]["differs_at"] == 0
    assert call["runs"][OWN]["differs_at"] is None
    assert part["stats"][OWN]["engines"] == {"tree, ragged": 1}


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"batch": [1, 2], "methods": OWN, "tokens": 8}
    whole = run(tmp_path, **asked)
    part = copy.deepcopy(whole)
    del part["batches"][1], part["batches"][0]["calls"][1:]
    (tmp_path / "out.json").write_text(json.dumps(part))
    again = run(tmp_path, **asked)
    assert again["batches"][0]["calls"][0] == whole["batches"][0]["calls"][0]
    assert [len(part["calls"]) for part in again["batches"]] == [2, 1]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1), min_size=1), st.integers(0, 9))
def test_padding_is_on_the_left_and_masked(prompts: list[list[int]], pad: int) -> None:
    ids, mask = padded(prompts, pad)
    assert [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)] == prompts
    assert all(kept.tolist() == sorted(kept.tolist()) for kept in mask)


@given(st.lists(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_an_answer_ends_with_its_first_stop_token(tokens: list[int], stops: set[int]) -> None:
    answer = _answer(tokens, stops)
    assert answer == tokens[: len(answer)]
    assert not stops & set(answer[:-1])
    assert len(answer) == len(tokens) or answer[-1] in stops
