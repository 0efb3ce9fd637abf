"""The comparison with seven papers: its split, its trees, and the table that the page shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.recycling import RecyclingDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.published import PUBLISHED
from hf_specplug.published.token_recycling import TokenRecycling
from tests.benchmarks.papers import texts
from tests.benchmarks.papers.__main__ import METHODS, shaped
from tests.test_docs import hooks

ROOT = Path(__file__).parents[2]
PARTS = ("tested", "learned", "stored")


def test_a_prompt_is_in_one_part_whoever_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(texts.PER_TASK, (texts.OWN, "tested"), 3)
    prompts = [f"Question {number}?" for number in range(60)]
    own, others = tmp_path / "own.jsonl", tmp_path / "others.jsonl"
    own.write_text("".join(json.dumps({"task": "a", "turns": [each]}) + "\n" for each in prompts))
    lines = [{"prompt": f" {each.upper()}\n", "response": "yes"} for each in prompts]
    others.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *lines]))
    found: dict[str, set[str]] = {part: set() for part in PARTS}
    for whose, path in ((texts.OWN, own), (texts.OTHERS, others)):
        for part, file in texts.split([str(path)], whose, tmp_path).items():
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            assert all(("response" in row) == (whose == texts.OTHERS) for row in rows)
            assert len(rows) > 2
            found[part] |= {row["prompt"].strip().lower() for row in rows}
            if (whose, part) == (texts.OWN, "tested"):
                assert len(rows) == 3
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


@given(st.text(max_size=30))
def test_white_space_and_case_make_no_difference(prompt: str) -> None:
    spaced = "  ".join(prompt.split())
    assert texts.part(spaced) == texts.part(f"\n{' '.join(prompt.split())} ")
    assert texts.part(prompt) in PARTS


def test_accepted_nodes_of_a_static_tree_are_counted() -> None:
    ids = np.tile(np.arange(1, 9, dtype=np.int32), (12, 1))
    drafter = RecyclingDrafter()
    drafter.load_state_dict({"ids": ids, "probs": np.ones((12, 8), np.uint16)})
    tree = np.array([-1, -1, 1], np.int32), np.array([0, 1, 0], np.int32)
    hits = np.zeros(3, np.int64)
    search = shaped(TokenRecycling, tree, hits)([drafter], Mixer(["recycling"]), 12, print)
    search.grow(0, 9, 9)
    search.learn(np.array([2, 1, 7], np.int32))
    search.learn(np.array([1, 5], np.int32))
    assert hits.tolist() == [1, 1, 1]


def test_the_page_shows_every_paper() -> None:
    assert set(METHODS) == set(hooks().CLAIMS) == set(PUBLISHED)
    table = hooks().papers("docs/bench/papers.json").splitlines()
    assert len(table) == 2 + len(METHODS) + 2
    results = json.loads((ROOT / "docs/bench/papers.json").read_text())["results"]
    for paper, row in zip(hooks().CLAIMS, table[2:], strict=False):
        forms = [each for each in results["own"]["forms"] if each["paper"] == paper]
        pair = [f"{each['tokens_per_step']:.2f}" for each in forms if each["nodes"] == 16]
        assert len(pair) == 2
        assert f"| {' / '.join(pair)} |" in row
    beside = hooks().answers("docs/bench/papers.json")
    for name in ("Token Recycling", "STAND", "RASD"):
        assert f"| {name}, as published |" in beside
    for name in ("recycling", "stand"):
        assert f"| `{name}` alone |" in beside
