"""Drafting from stores: faster with the right one, never another text with any."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.rest import RestDrafter
from hf_specplug.errors import StoreError
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.runs import new_tokens, plain
from tests.helpers.stores import Letters, make, silent, stop, texts
from tests.helpers.zoo import VOCAB, prompt
from tests.helpers.zoo import make as make_model

GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of texts that no model wrote."""
    folder = tmp_path_factory.mktemp("noise")
    make(folder / "store", texts(folder / "texts", 40), shard_tokens=900)
    return folder / "store"


def store_of(folder: Path, *answers: list[int], kind: str = "suffix") -> Path:
    """A store of token sequences."""
    folder.mkdir()
    for number, answer in enumerate(answers):
        (folder / f"{number}.txt").write_text("".join(chr(960 + token) for token in answer))
    files = Corpus(find([str(folder)]))
    build(
        folder.parent / f"{folder.name}.store",
        files,
        Letters(),
        BuildOptions(kind=kind),
        stop,
        silent,
    )
    return folder.parent / f"{folder.name}.store"


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "t5", "whisper"])
def test_noise_changes_nothing(name: str, noise: Path) -> None:
    model = make_model(name)
    inputs = prompt(model)
    for settings in (GREEDY, {"max_new_tokens": 40, "do_sample": True, "top_k": 20}):
        expected, state = plain(model, inputs, seed=4, **settings)
        plug = attach(model, datastores=[noise], nodes=16)
        torch.manual_seed(4)
        output = model.generate(**inputs, **settings)
        detach(model)
        assert output.tolist() == expected.tolist()
        assert torch.equal(torch.get_rng_state(), state)
        assert not plug.stats.dropped


def test_a_store_of_the_answer_saves_forward_passes(tmp_path: Path) -> None:
    model = make_model("llama")
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    store = store_of(tmp_path / "answer", new_tokens(expected, 40))
    forwards = {}
    for stores in ((), (store,)):
        plug = attach(model, drafters=["context"], datastores=stores, nodes=12)
        assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
        detach(model)
        forwards[len(stores)] = plug.stats.forwards
    assert forwards[1] < 0.5 * forwards[0]
    assert plug.stats.accepted_by["rest"] > 20


def test_stores_can_be_added_while_in_use(tmp_path: Path, noise: Path) -> None:
    model = make_model("llama")
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    plug = attach(model, nodes=12)
    model.generate(**inputs, **GREEDY)
    learned = plug.mixer.state_dict()["context.weights"]
    plug.add_datastore(noise)
    assert (plug.mixer.state_dict()["context.weights"] == learned).all()
    assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    plug.stats.reset()
    plug.add_datastore(store_of(tmp_path / "answer", new_tokens(expected, 40)))
    assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    assert plug.stats.accepted_by["rest"] > 20
    assert [drafter.name for drafter in plug.drafters] == [*DEFAULT_DRAFTERS, "rest"]
    detach(model)


def test_what_is_refused(noise: Path, tmp_path: Path) -> None:
    class Other(Letters):
        def get_vocab(self) -> dict[str, int]:
            return {f"other {index}": index for index in range(96)}

    model = copy.deepcopy(make_model("llama"))
    with pytest.raises(StoreError, match="tokenizer of letters"):
        attach(model, datastores=[noise], tokenizer=Other())
    with pytest.raises(StoreError, match="is not a datastore"):
        attach(model, datastores=[tmp_path])
    assert "generate" not in vars(model)
    plug = attach(model, datastores=[noise], tokenizer=Letters())
    with pytest.raises(StoreError, match="tokenizer of letters"):
        plug.add_datastore(noise, Other())
    detach(model)


def test_a_store_with_more_ids_than_the_model_is_dropped(tmp_path: Path) -> None:
    files = Corpus(find([str(texts(tmp_path / "texts", 3))]))
    wide = Letters(VOCAB + 5)
    build(tmp_path / "store", files, wide, BuildOptions(), stop, silent)
    model = make_model("llama")
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    plug = attach(model, datastores=[tmp_path / "store"])
    assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    detach(model)
    assert "built with another tokenizer" in plug.stats.dropped["rest"]


def test_copies_and_pickles_open_the_store_again(noise: Path) -> None:
    plug = SpecPlug(datastores=[noise])
    for other in (copy.deepcopy(plug), pickle.loads(pickle.dumps(plug))):
        (rest,) = (d for d in other.drafters if isinstance(d, RestDrafter))
        assert [store.path for store in rest.stores] == [noise]
        assert len(pickle.dumps(other)) < 1_000_000


def test_files_that_go_away_leave_an_open_store_as_it_is(tmp_path: Path) -> None:
    store = tmp_path / "store"
    make(store, texts(tmp_path / "texts", 12))
    opened = Datastore(store)
    before = [np.array(shard.tokens) for shard in opened.shards]
    for path in store.iterdir():
        path.unlink()
    for shard, tokens in zip(opened.shards, before, strict=True):
        assert (shard.tokens == tokens).all()


def test_several_threads_read_one_store(noise: Path) -> None:
    opened = Datastore(noise)
    model = make_model("llama")
    expected, _ = plain(model, prompt(model), **GREEDY)
    results: list[list[list[int]]] = []

    def run() -> None:
        plug = SpecPlug(datastores=[opened])
        output = type(model).generate(model, **prompt(model), **GREEDY, custom_generate=plug)
        results.append(output.tolist())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected.tolist()] * 4
