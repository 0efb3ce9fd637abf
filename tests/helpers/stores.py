"""Small corpora, stores, and a tokenizer that needs no file, for tests of datastores."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.executors import IndexBuilder
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.building.store_corpus import StoreCorpus
from hf_specplug.datastore.kinds.contract import NO_SETTINGS, Arrays
from hf_specplug.datastore.kinds.dense import DenseIndex
from hf_specplug.datastore.kinds.projection import fit_projection, project
from hf_specplug.datastore.manifest import Manifest
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError, StoreError


class Letters:
    """A tokenizer with one token per letter: its code point, counted from 0 from chr(960) on."""

    name_or_path = "letters"

    def __init__(self, size: int = 96) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        return {f"<{index}>": index for index in range(self._size)}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        rows = [
            [(ord(letter) - 960 if ord(letter) >= 960 else ord(letter)) for letter in text]
            for text in texts
        ]
        return {"input_ids": [[token % self._size for token in row] for row in rows]}


class Words(Letters):
    """A tokenizer with one token per word of four characters: `w07 ` is 7."""

    name_or_path = "words"

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word[1:]) for word in text.split()] for text in texts]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"w{token:02d} " for token in ids)


def stop(error: CorpusError) -> None:
    raise error


def silent(documents: int, tokens: int) -> None:
    pass


def texts(folder: Path, count: int = 20, seed: int = 0) -> Path:
    """Write `count` text files of random letters with repetitions to a folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 6, 4)) for _ in range(12)]
    for number in range(count):
        text = " ".join(rng.choice(words) for _ in range(30))
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


def make(
    store: Path,
    corpus: Path,
    append: bool = False,
    letters: int = 96,
    index: IndexBuilder | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    **options: Any,
) -> Manifest:
    files = Corpus(find([str(corpus)]))
    asked = BuildOptions(append=append, **options)
    return build(
        store, files, Letters(letters), asked, stop, silent, builder=index, settings=settings
    )


def letters(corpus: Path) -> list[int]:
    """The tokens of a folder of texts: those of each document, then a separator."""
    rows = [path.read_text() for path in sorted(corpus.iterdir())]
    return [token for row in rows for token in [*(ord(letter) % 96 for letter in row), 96]]


def from_store(store: Path, source: Path, **options: Any) -> Datastore:
    """Build a store from the texts of another store."""
    dense = options.get("kind") == "dense"
    index, settings = (tabled, SETTINGS) if dense else (None, NO_SETTINGS)
    corpus, asked = StoreCorpus((str(source),)), BuildOptions(**options)
    build(store, corpus, Letters(), asked, stop, silent, builder=index, settings=settings)
    return Datastore(store)


def unit(count: int, dims: int = 8, seed: int = 0) -> np.ndarray[Any, Any]:
    """float32[count, dims], random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def dense(vectors: np.ndarray[Any, Any], index: str = "Flat") -> Arrays:
    """The arrays of a dense index of `vectors`, with random tokens."""
    tokens = np.random.default_rng(0).integers(0, 96, len(vectors))
    transform = np.eye(vectors.shape[1] + 1, vectors.shape[1], dtype=np.float32)
    part = DenseIndex(DenseIndex.from_vectors(tokens, vectors, transform, 96), 96)
    return DenseIndex.join([part], 96, {"index": index})


def stored(index: DenseIndex) -> np.ndarray[Any, Any]:
    """The vectors of a dense index."""
    return np.concatenate(list(index.blocks()))


STATES = np.random.default_rng(1).normal(size=(97, 12)).astype(np.float32)  # per token of `Letters`
SETTINGS = {
    "model": {"name": "a table", "hash": "0" * 32},
    "layer": -1,
    "metric": "inner_product",
    "index": "auto",
}


def tabled(tokens: np.ndarray[Any, Any], vocab: int) -> Arrays:
    """Index a shard by synthetic states that depend on each token and the previous one."""
    transform = fit_projection(STATES, 8)
    vectors = project(STATES[tokens] + 0.5 * STATES[np.roll(tokens, 1)], transform)
    vectors[tokens == vocab] = 0.0
    return DenseIndex.from_vectors(tokens, vectors, transform, vocab)


def make_dense(
    store: Path, corpus: Path, append: bool = False, made_by: IndexBuilder = tabled, **settings: Any
) -> Manifest:
    """Build a dense store with shards of 500 tokens."""
    return make(
        store,
        corpus,
        append,
        index=made_by,
        kind="dense",
        shard_tokens=500,
        settings=SETTINGS | settings,
    )


def read_changed(count: int = 200) -> None:
    """Search indices with one changed byte each, as if their checksums were right."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    vectors, rng, read = unit(300), random.Random(0), 0
    good = {name: dense(vectors, name) for name in ("Flat", "SQ8", "IVF4,SQ8")}
    for _ in range(count):
        name = rng.choice(list(good))
        data = good[name]["index"].copy()
        place = rng.randrange(rng.choice([120, len(data)]))
        data[place] = rng.randrange(256)
        print(name, place, data[place], file=sys.stderr, flush=True)
        with suppress(StoreError):
            index = DenseIndex({**good[name], "index": data}, 96)
            read += 1
            with suppress(RuntimeError):  # raised by FAISS
                near, places = index.search(vectors[7], 50)
                assert near.shape == places.shape == (50,)
                index.check(96)
    assert count / 4 < read < count


def read_fast_scan() -> None:
    """Check an index from which FAISS cannot reconstruct vectors."""
    with suppress(StoreError):
        DenseIndex(dense(unit(300, 32), "IVF16,PQ16x4fs"), 96).check(96)


class Interrupted(KeyboardInterrupt):
    """Simulates the end of a process."""


def interrupted(after: int) -> Callable[..., Arrays]:
    """`tabled` for a process that ends when it has indexed `after` shards."""
    left = iter(range(after))

    def index(tokens: Any, vocab: int, *_: Any) -> Arrays:
        if next(left, None) is None:
            raise Interrupted
        return tabled(tokens, vocab)

    return index


def saved(folder: Path, family: str = "llama", size: int = 96) -> str:
    """Save a tiny model, with one token per letter, to a folder; returns the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.helpers.zoo import make as make_model

    make_model(family).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({chr(192 + i): i for i in range(size)}, chr(192)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def documents(lengths: list[int]) -> list[list[int]]:
    """Random documents, of `lengths` tokens, for a model of `saved`."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, 90, length).tolist() for length in lengths]


def joined(rows: list[list[int]]) -> np.ndarray[Any, Any]:
    """Documents as a shard holds them: a separator after each."""
    return np.array([token for row in rows for token in [*row, 96]], np.uint16)


def write_texts(folder: Path, rows: list[list[int]]) -> Path:
    """Write documents, given as tokens, as text files to a folder."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        (folder / f"{number}.txt").write_text("".join(chr(192 + token) for token in row))
    return folder


def opened(store: Path, shards: int = 1) -> list[DenseIndex]:
    """Open a store and check it; returns its shards."""
    made = Datastore(store)
    made.check(deep=True)
    assert len(made.shards) == shards
    return made.shards


def states(model: str, rows: list[list[int]], layer: int = -1) -> np.ndarray[Any, Any]:
    """The hidden states after each token, by plain forward passes; NaN at each separator."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded, parts = AutoModelForCausalLM.from_pretrained(model), []
    for row in rows:
        with torch.inference_mode():
            output = loaded(torch.tensor([row]), output_hidden_states=True)
        parts += [output.hidden_states[layer][0].numpy(), np.full((1, 32), np.nan, np.float32)]
    return np.concatenate(parts)


def files(store: Path) -> dict[str, bytes]:
    """The array files of a store: name to content."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.suffix == ".npy"}


def cells(vectors: np.ndarray[Any, Any], ids: Any, probes: int) -> Arrays:
    """An IVF index of `vectors` with these ids, which searches `probes` cells."""
    import faiss

    index = faiss.index_factory(8, "IVF4,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors, ids)
    index.nprobe = probes
    return {"index": faiss.serialize_index(index)}


def specplug(*arguments: object) -> tuple[int, str]:
    """Run a command of the CLI; returns (exit code, stdout, or stderr if the code is not 0)."""
    from typer.testing import CliRunner

    from hf_specplug import cli

    result = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr if result.exit_code else result.stdout


def info(store: Path) -> dict[str, Any]:
    """The output of `specplug info`."""
    report: dict[str, Any] = json.loads(specplug("info", store, "--format", "json")[1])
    return report
