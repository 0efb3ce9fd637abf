"""A kind of datastore is one file: this one defines a kind and a drafter that reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hf_specplug import Context, Frontier, SpecPlug, register
from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.kinds import registry as kinds
from hf_specplug.datastore.kinds.contract import (
    NO_SETTINGS,
    Arrays,
    Index,
    require,
    token_dtype,
)
from hf_specplug.datastore.kinds.registry import index_class, register_kind
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters import registry as drafters
from hf_specplug.drafters.store_drafter import StoreDrafter
from hf_specplug.errors import StoreError
from tests.helpers.runs import plain
from tests.helpers.stores import (
    Letters,
    info,
    letters,
    make,
    saved,
    silent,
    specplug,
    texts,
    write_texts,
)
from tests.helpers.zoo import make as make_model
from tests.helpers.zoo import prompt


class Bigrams(Index):
    """The most frequent successor of each token: `successors` uint16[vocab], vocab = unknown."""

    kind: ClassVar[str] = "bigrams"
    summary: ClassVar[str] = "one successor per token"
    array_names: ClassVar[tuple[str, ...]] = ("successors", "counts")

    @classmethod
    def build(cls, tokens: Any, vocab: int) -> Arrays:
        counts = np.zeros((vocab + 1, vocab + 1), np.uint32)
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
        return cls._kept(counts[:vocab, :vocab])

    @classmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        counts = np.zeros((vocab, vocab), np.uint32)
        for part in parts:
            seen = np.flatnonzero(part.successors < vocab)
            counts[seen, part.successors[seen]] += part.counts[seen]
        return cls._kept(counts)

    @staticmethod
    def _kept(counts: Any) -> Arrays:
        vocab = len(counts)
        best = np.where(counts.any(axis=1), counts.argmax(axis=1), vocab)
        return {"successors": best.astype(token_dtype(vocab)), "counts": counts.max(axis=1)}

    def __init__(self, arrays: Arrays, vocab: int) -> None:
        require(arrays, successors=token_dtype(vocab), counts=np.uint32)
        self.successors, self.counts = arrays["successors"], arrays["counts"]
        if not len(self.successors) == len(self.counts) == vocab:
            raise StoreError("a token has no successor")

    def about(self) -> dict[str, Any]:
        return {"pairs": int(self.counts.astype(bool).sum())}

    def check(self, vocab: int) -> None:
        if int(self.successors.max()) > vocab:
            raise StoreError("a token id is outside the vocabulary")


class BigramDrafter(StoreDrafter):
    """Proposes the successor of the last token of each path."""

    name: ClassVar[str] = "bigrams"
    kinds: ClassVar[frozenset[str]] = frozenset({"bigrams"})

    def __init__(self, stores: Any = (), tokenizer: Any = None) -> None:
        self.priors = np.array([0.5], np.float32)
        super().__init__(stores, tokenizer)

    def _opened(self, store: Datastore) -> None:
        pass

    def begin(self, context: Context) -> None:
        super().begin(context)
        self.context = context

    def expand(self, frontier: Frontier) -> Any:
        rows = set()
        for node in frontier.nodes.tolist():
            last = [*self.context.tokens[-1:].tolist(), *frontier.path(node)][-1]
            for store in self.stores:
                for shard in store.shards:
                    token = int(shard.successors[last]) if last < len(shard.successors) else 1 << 30
                    if token < store.manifest.vocab_size:
                        rows.add((node, token, 0))
        return np.array(sorted(rows), np.int32).reshape(-1, 3)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tests of this file only: others test every registered drafter."""
    for module in (kinds, drafters):
        monkeypatch.setattr(module, "REGISTERED", module.registry())
    register_kind(Bigrams)
    register(BigramDrafter)


def successors(tokens: list[int]) -> dict[int, int]:
    """In plain Python, the smallest of equally frequent ones."""
    counts: dict[int, dict[int, int]] = {}
    for one, other in pairwise(tokens):
        if 96 not in (one, other):
            row = counts.setdefault(one, {})
            row[other] = row.get(other, 0) + 1
    return {one: min(row, key=lambda token: (-row[token], token)) for one, row in counts.items()}


def known(shard: Bigrams) -> dict[int, int]:
    return {i: int(token) for i, token in enumerate(shard.successors) if token < 96}


def test_it_is_built_opened_checked_and_merged(tmp_path: Path) -> None:
    corpus, more = texts(tmp_path / "texts"), texts(tmp_path / "more", 5, seed=1)
    make(tmp_path / "store", corpus, kind="bigrams")
    store = Datastore(tmp_path / "store")
    store.check(deep=True)
    assert [known(shard) for shard in store.shards] == [successors(letters(corpus))]
    make(tmp_path / "store", more, append=True)
    assert len(Datastore(tmp_path / "store").shards) == 2
    merge(tmp_path / "store", 100, silent)
    (shard,) = Datastore(tmp_path / "store").shards
    one, other = successors(letters(corpus)), successors(letters(more))
    joined = known(shard)
    assert joined.keys() == one.keys() | other.keys()
    assert all(joined[token] in (one.get(token), other.get(token)) for token in joined)
    (path,) = (tmp_path / "store").glob("*.successors.npy")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="bytes instead of"):
        Datastore(tmp_path / "store")


def test_the_commands_take_it(tmp_path: Path) -> None:
    """Also an error of the class, and a message that lists the kinds."""
    model = saved(tmp_path / "model")
    store, corpus = tmp_path / "store", write_texts(tmp_path / "texts", [[5, 6, 7, 8] * 9])
    arguments = [corpus, "--tokenizer", model]
    assert specplug("build", store, *arguments, "--kind", "bigrams")[0] == 0
    assert specplug("append", store, corpus)[0] == 0
    assert specplug("merge", store)[0] == 0
    assert [info(store)[key] for key in ("kind", "pairs", "shards")] == ["bigrams", 4, 1]
    code, shown = specplug("query", store, chr(192 + 5), "--nodes", "3", "--format", "json")
    assert (code, shown.count("parent")) == (0, 3)
    code, error = specplug("build", tmp_path / "new", *arguments, "--kind", "bigram")
    assert (code, "bigrams, dense, ngram, phrases, suffix, trigram" in error) == (1, True)
    code, error = specplug("build", tmp_path / "new", *arguments, "--kind", "bigrams", "--given")
    assert (code, "--given is for datastores of kind phrases" in error) == (1, True)
    code, error = specplug("build", tmp_path / "new", store, "--tokenizer", model)
    assert (code, "does not keep its texts" in error) == (1, True)


def test_it_is_drafted_from(tmp_path: Path) -> None:
    make(tmp_path / "store", texts(tmp_path / "texts"), kind="bigrams")
    model = make_model("llama")
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    expected, _ = plain(model, prompt(model), **settings)
    plug = SpecPlug(datastores=[tmp_path / "store"], tokenizer=Letters(), nodes=8)
    assert plug.drafters[-1].name == "bigrams"
    output = model.generate(**prompt(model), **settings, custom_generate=plug)
    assert output.tolist() == expected.tolist()
    assert not plug.stats.dropped


def test_the_help_lists_every_kind() -> None:
    """Each with its line, in a fresh process (without this file's kind)."""
    command = [sys.executable, "-m", "hf_specplug.cli", "build", "--help"]
    wide = {**os.environ, "COLUMNS": "800"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=wide).stdout
    words = " ".join(text.replace("│", " ").split())
    for name, kind in kinds.registry().items():
        assert (f"{name} ({kind.summary})" in words) == (name != "bigrams")


def test_names_of_kinds() -> None:
    class Other(Bigrams):
        pass

    with pytest.raises(StoreError, match="two kinds of datastore are called 'bigrams'"):
        register_kind(Other)
    assert index_class("bigrams") is Bigrams
    with pytest.raises(StoreError, match=r"one of bigrams, dense, .* not 'nothing'"):
        index_class("nothing")


def test_a_store_of_an_unknown_kind(tmp_path: Path) -> None:
    make(tmp_path / "store", texts(tmp_path / "texts", 2))
    path = tmp_path / "store" / manifest.NAME
    path.write_text(path.read_text().replace('"suffix"', '"tomorrow"'))
    with pytest.raises(StoreError, match="kind 'tomorrow' is not one of"):
        Datastore(tmp_path / "store")
