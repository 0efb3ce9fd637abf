"""Every text-generating entry of transformers keeps its output, a third of them in each run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
import transformers

from tests.sweep import compare, worker
from tests.sweep.__main__ import main, named
from tests.sweep.choice import README, chosen
from tests.sweep.pool import Worker
from tests.sweep.recipe import ENTRIES, MAPPINGS
from tests.sweep.table import FAILED, OUTCOMES, general, load, tables

BETTER = ("tree", "chain", "plain", "not built")
SAVED: dict[tuple[str, str], dict[str, Any]] = {
    (row["mapping"], row["model_type"]): row for row in load()["rows"]
}


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[Worker]:
    with Worker() as one:
        yield one


@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "name"), chosen(ENTRIES))
def test_an_entry(mapping: str, name: str, shared_worker: Worker) -> None:
    row = shared_worker.row(mapping, name)
    print(json.dumps(row))
    assert row["outcome"] not in FAILED, row["reason"]
    saved = SAVED.get((mapping, name))
    if saved is not None and saved["outcome"] in BETTER:
        as_good = BETTER[: BETTER.index(saved["outcome"]) + 1]
        assert row["outcome"] in as_good, f"it was {saved['outcome']}; {row['reason']}"


def test_thirds_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str]] = []
    for third in "012":
        monkeypatch.setenv("SWEEP_THIRD", third)
        taken += chosen(ENTRIES)
    assert set(taken) == set(ENTRIES)
    assert {name for _, name in ENTRIES} >= README
    monkeypatch.delenv("SWEEP_THIRD")
    assert chosen(ENTRIES) == chosen(ENTRIES)
    assert len(chosen(ENTRIES)) < len(ENTRIES) / 2


def test_what_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = compare.plugged

    def wrong(*arguments: Any, **settings: Any) -> Any:
        output, state, plug = original(*arguments, **settings)
        if settings["do_sample"] and isinstance(output, torch.Tensor):
            output[0, -1] += 1
        return output, state, plug

    monkeypatch.setattr(compare, "plugged", wrong)
    row = compare.check("causal", "llama")
    assert row.outcome == "differs"
    assert "sampled: from new token 47 of 48" in row.reason


def test_what_fails_in_plain_is_not_built_and_else_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(compare, "plugged", fail)
        row = compare.check("causal", "llama")
        assert (row.outcome, row.reason.split(" (")[0]) == (
            "crash",
            "drafted greedy: ValueError: no",
        )
    with monkeypatch.context() as patch:
        patch.setattr(compare, "plain", fail)
        assert compare.check("causal", "llama").outcome == "not built"


def test_no_end_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SECONDS", 0)
    row = worker.forked("causal", "llama")
    assert row["outcome"] == "not built"
    assert "no end after 0 s" in row["reason"]
    assert set(row) == set(asdict(compare.Row("", "")))


def test_the_saved_rows_are_whole() -> None:
    rows = load()["rows"]
    assert {row["outcome"] for row in rows} <= set(OUTCOMES)
    for row in rows:
        assert bool(row.get("reason")) == (row["outcome"] != "tree"), row
    if load()["transformers"] == transformers.__version__:
        assert set(SAVED) == set(ENTRIES)


def test_tables_have_all() -> None:
    text = tables()
    rows = load()["rows"]
    for row in rows:
        assert f"`{row['model_type']}`" in text
    for mapping in MAPPINGS:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {mapping} |"))
        total, *counts = map(int, line.strip("| ").split(" | ")[1:])
        assert total == sum(counts) == sum(row["mapping"] == mapping for row in rows)


def test_reasons_of_several_families_are_one() -> None:
    reason = "{} has layers that look at neighbours instead of a mask"
    assert general(reason.format("mamba2")) == general(reason.format("qwen3_5_text"))
    off = "a probe of {} found tree logits off by {} deviations"
    assert general(off.format("bert", 0.53)) == general(off.format("xlm-roberta", 1e-2))
    assert general(reason) != general(off)


def test_entries_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named(("causal", "gemma4_text+k_eq_v"), ["gemma4_text"])
    assert named(("causal", "llama"), ["LlamaForCausalLM"])
    assert not named(("causal", "llama"), ["speech", "llama4"])
    monkeypatch.setattr("sys.argv", ["sweep", "--only", "llama", "nothing"])
    with pytest.raises(SystemExit):
        main()
    assert "no entry is named nothing" in capsys.readouterr().err
