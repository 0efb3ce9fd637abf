"""Drafts as in the papers inside `generate`: they draft from stores, and change no output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_specplug import SpecPlug
from hf_specplug.drafters.contract import Step
from hf_specplug.drafters.phrases import PhrasesDrafter
from hf_specplug.drafters.registry import create
from hf_specplug.hf.hidden_states import signature
from hf_specplug.published import PUBLISHED, completed
from hf_specplug.published.paper import merged
from hf_specplug.published.rasd import is_model_derived
from tests.drafters.test_dense import States, dense_store, described
from tests.drafters.test_rest import store_of
from tests.helpers.runs import new_tokens, plain
from tests.helpers.zoo import make, prompt

KINDS = {
    "aded": ["trigram"],
    "dresd": ["dense"],
    "hierarchy": ["ngram", "suffix"],
    "rasd": ["suffix", "dense"],
    "rest": ["suffix"],
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of an answer of the tiny model; its hidden states are random ones."""
    folder = tmp_path_factory.mktemp("stores")
    model = make("llama")
    expected, _ = plain(model, prompt(model), max_new_tokens=60, do_sample=False)
    answer = new_tokens(expected, 60)
    made = {
        kind: store_of(folder / kind, answer, kind=kind) for kind in ("suffix", "trigram", "ngram")
    }
    settings = described(signature(model), "some/one")
    made["dense"] = dense_store(folder / "dense", settings, States(32), [answer] * 3)
    return made


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("paper", list(KINDS))
def test_output_stays_the_same(paper: str, do_sample: bool, stores: dict[str, Path]) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings: dict[str, Any] = {"max_new_tokens": 60, "do_sample": do_sample}
    expected, _ = plain(model, inputs, 4, **settings)
    given = [stores[kind] for kind in KINDS[paper]]
    plug = SpecPlug(nodes=16, published=paper, datastores=given)
    torch.manual_seed(4)
    output = model.generate(**inputs, **settings, custom_generate=plug)
    assert output.tolist() == expected.tolist()
    assert plug.stats.drafted
    assert not plug.stats.dropped
    if not do_sample and paper != "dresd":  # random states find nothing that follows
        assert plug.stats.accepted > 5


def test_a_cold_rasd_drafts_what_it_retrieves() -> None:
    """No drafter proposes what the model finds likely: nothing is pruned."""
    model, inputs = make("llama"), prompt(make("llama"))
    plug = SpecPlug("context", nodes=16, published="rasd")
    model.generate(**inputs, max_new_tokens=60, do_sample=False, custom_generate=plug)
    assert plug.stats.drafted


def test_rasd_takes_drafters_by_what_they_read() -> None:
    names = ["context", "recycling", "stand", "dense", "rest", "trigram", "phrases"]
    derived = [drafter.name for drafter in create(names) if is_model_derived(drafter)]
    assert derived == ["recycling", "stand"]


def test_only_the_drafters_of_a_paper_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make("llama"), prompt(make("llama"))

    def touched(self: Any, step: Step) -> None:
        raise AssertionError("learned")

    plug = SpecPlug(["recycling", PhrasesDrafter()], nodes=16, published="token-recycling")
    monkeypatch.setattr(PhrasesDrafter, "observe", touched)
    model.generate(**inputs, max_new_tokens=20, do_sample=False, custom_generate=plug)
    assert not plug.stats.dropped


def test_every_paper_brings_its_drafters() -> None:
    for paper, search in PUBLISHED.items():
        names = [drafter.name for drafter in completed([], paper)]
        assert names == list(search.uses)
        assert completed(made := create(names), paper) is made
    hierarchy = completed(create(["rest", "recycling"]), "hierarchy")
    assert [one.name for one in hierarchy] == ["rest", "recycling", "context", "phrases"]


def test_rows_are_merged_and_cut_level_by_level() -> None:
    rows = [([5, 6, 7], 1), ([5, 6, 8], 2), ([9], 4), ([5, 4], 1)]
    tree = merged(rows, 9, 9)
    assert tree.tokens.tolist() == [5, 9, 6, 4, 7, 8]
    assert tree.parents.tolist() == [-1, -1, 0, 0, 2, 2]
    assert tree.sources.tolist() == [3, 4, 3, 1, 1, 2]
    assert tree.probs.tolist() == pytest.approx([3 / 4, 1 / 4, 2 / 3, 1 / 3, 1 / 2, 1 / 2])
    assert merged(rows, 3, 9).tokens.tolist() == [5, 9, 6]
    assert merged(rows, 9, 1).tokens.tolist() == [5, 9]
    assert len(merged([], 9, 9)) == len(merged(rows, 0, 9)) == 0
