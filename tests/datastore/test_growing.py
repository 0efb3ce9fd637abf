"""Stores that grow from use, and stores on the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import attach, detach
from hf_specplug.datastore import hub
from hf_specplug.datastore.building.folder import exclusive_writer
from hf_specplug.datastore.building.growing import GrowingStore
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import OptionError, StoreError
from tests.helpers.runs import new_tokens, plain
from tests.helpers.stores import Letters, make, saved, specplug, texts
from tests.helpers.zoo import make as make_model
from tests.helpers.zoo import prompt

GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}


def contents(path: Path) -> list[int]:
    opened = Datastore(path)
    opened.check(deep=True)
    return [token for shard in opened.shards for token in shard.tokens.tolist()]


def test_yesterdays_answers_are_todays_drafts(tmp_path: Path) -> None:
    model = make_model("llama")
    answers = []
    plug = attach(model, drafters=["context"])
    growing = plug.record_to(tmp_path / "mine.store", Letters())
    for seed in range(3):
        output = model.generate(**prompt(model, seed=seed), **GREEDY)
        answers += [*new_tokens(output, 40), 96]
    assert not (tmp_path / "mine.store").exists()
    growing.flush()
    assert contents(tmp_path / "mine.store") == answers
    detach(model)
    forwards = []
    for stores in ([], [tmp_path / "mine.store"]):
        plug = attach(model, drafters=["context"], datastores=stores, tokenizer=Letters())
        expected, _ = plain(model, prompt(model, seed=1), **GREEDY)
        assert model.generate(**prompt(model, seed=1), **GREEDY).tolist() == expected.tolist()
        forwards.append(plug.stats.forwards)
        detach(model)
    assert forwards[1] < 0.6 * forwards[0]


def test_what_is_kept(tmp_path: Path) -> None:
    """Everything, in order, in few shards; the oldest go when it is too much."""
    rng = np.random.default_rng(0)
    growing = GrowingStore(tmp_path / "store", Letters(), max_tokens=3000)
    everything: list[int] = []
    for _ in range(60):
        text = rng.integers(0, 96, rng.integers(1, 150))
        growing.add(text)
        everything += [*text.tolist(), 96]
        growing.flush()
        kept = contents(tmp_path / "store")
        assert kept == everything[len(everything) - len(kept) :]
        assert len(kept) <= 3000
        assert len(Datastore(tmp_path / "store").shards) <= 12
    assert len(kept) > 1500
    assert len(list((tmp_path / "store").glob("*.npy"))) <= 24 + 2


def test_strange_tokens_and_sizes(tmp_path: Path) -> None:
    growing = GrowingStore(tmp_path / "store", Letters(), max_tokens=50)
    growing.add(np.array([], np.int32))
    growing.add(np.array([200, 1]))
    growing.add(np.array([1, 2, -1, 3]))
    growing.flush()
    assert contents(tmp_path / "store") == [1, 2, 96]
    growing.add(np.arange(96))  # more than is to be kept
    assert contents(tmp_path / "store")[-1] == 96
    assert len(contents(tmp_path / "store")) <= 50
    for size in (0, -1, 2.5, True, "many"):
        with pytest.raises(OptionError, match="max_tokens"):
            GrowingStore(tmp_path / "store", Letters(), size)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="tokenizer of letters"):
        GrowingStore(tmp_path / "store", Letters(90))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(StoreError, match="is not a datastore"):
        GrowingStore(tmp_path / "other", Letters())


def test_what_cannot_be_written_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    growing = GrowingStore(tmp_path / "store", Letters())
    growing.add(np.array([1, 2, 3]))
    with exclusive_writer(tmp_path / "store"):
        growing.flush()
    assert "not recorded" in caplog.text
    del growing  # writes what is left
    assert contents(tmp_path / "store") == [1, 2, 3, 96]


class Hub:
    """The Hub's part of huggingface_hub, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, token: str | None = None) -> Hub:
        return self

    def create_repo(self, repo_id: str, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert (repo_type, exist_ok) == ("dataset", True)
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)

    def file_exists(self, repo_id: str, name: str, repo_type: str) -> bool:
        return (self.folder / repo_id / name).exists()

    def upload_file(
        self, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, **_: Any
    ) -> None:
        (self.folder / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def upload_folder(self, folder_path: str, repo_id: str, **settings: Any) -> str:
        for pattern in settings["delete_patterns"]:
            for path in (self.folder / repo_id).glob(pattern):
                path.unlink()
        for name in settings["allow_patterns"]:
            shutil.copy(Path(folder_path) / name, self.folder / repo_id / name)
        return "done"

    def download(self, repo_id: str, local_dir: str, allow_patterns: list[str], **_: Any) -> None:
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for path in (self.folder / repo_id).glob(pattern):
                shutil.copy(path, local_dir)


def test_the_hub_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mock = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", mock)
    monkeypatch.setattr(hub, "snapshot_download", mock.download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make(tmp_path / "store", texts(tmp_path / "texts", 5))
    (tmp_path / "store" / "private.txt").write_text("not part of the store")
    for _ in range(2):
        assert hub.push_to_hub(tmp_path / "store", "me/mine") == "done"
    assert not (tmp_path / "hub" / "me" / "mine" / "private.txt").exists()
    card = (tmp_path / "hub" / "me" / "mine" / "README.md").read_text()
    assert "hf://me/mine" in card
    assert "5 documents" in card.replace("\n", " ")
    assert contents(hub.from_hub("me/mine").path) == contents(tmp_path / "store")
    plug = attach(make_model("llama"), datastores=["hf://me/mine@v1"], tokenizer=Letters())
    detach(make_model("llama"))
    assert plug.drafters[-1].name == "rest"
    (path,) = (tmp_path / "hub" / "me" / "mine").glob("*.tokens.npy")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="changed since it was written"):
        hub.from_hub("me/mine")


def test_yesterdays_answers_make_a_dense_store(tmp_path: Path) -> None:
    """Recorded as tokens, read by the model again, and found by its states."""
    folder = saved(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    plug = attach(model, drafters=["context"])
    growing = plug.record_to(tmp_path / "mine.store", AutoTokenizer.from_pretrained(folder))
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    growing.flush()
    detach(model)
    dense = ["--kind", "dense", "--model", folder]
    assert specplug("build", tmp_path / "mine.dense", tmp_path / "mine.store", *dense)[0] == 0
    plug = attach(model, drafters=["dense"], datastores=[tmp_path / "mine.dense"], nodes=12)
    assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    assert not plug.stats.dropped
    assert plug.stats.accepted_by["dense"] > 5
    detach(model)
