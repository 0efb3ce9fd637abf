"""Dense stores: as plain numpy has them, whole whatever ends a build, harmless when damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import AutoTokenizer

from hf_specplug import DEMO_MODEL
from hf_specplug.datastore import manifest
from hf_specplug.datastore.building import embedding
from hf_specplug.datastore.building.corpus import STDIN, Corpus, find
from hf_specplug.datastore.building.embedding import Embedding
from hf_specplug.datastore.building.folder import write_shard
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.kinds import dense as module
from hf_specplug.datastore.kinds.dense import DenseIndex
from hf_specplug.datastore.kinds.projection import DIMS, fit_projection, project
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError, OptionError, StoreError
from tests.helpers import stores
from tests.helpers.runs import assert_harmless
from tests.helpers.stores import (
    dense,
    documents,
    files,
    make,
    make_dense,
    opened,
    specplug,
    stored,
    texts,
)

VOCAB = 96
VECTORS, GOOD = stores.unit(300), dense(stores.unit(300))
faiss.omp_set_num_threads(1)  # two are slower where others work, too


def cosines(states: Any, dims: int) -> Any:
    """Of all pairs of states, by numpy's SVD in float64."""
    deviation = states.std(axis=0, dtype=np.float64)
    scored = (states - states.mean(axis=0, dtype=np.float64)) / np.maximum(deviation, 1e-9)
    vectors = scored @ np.linalg.svd(scored, full_matrices=False)[2][:dims].T
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


@pytest.mark.parametrize(("width", "dims"), [(100, DIMS), (20, DIMS), (20, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_transform_is_that_of_numpy(width: int, dims: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(400, width)) * np.arange(1, width + 1) + 3).astype(dtype)
    states[:, 7] = 4.0  # says nothing
    holes = np.insert(states, [0, 9, 400], [[np.nan], [np.inf], [-np.inf]], axis=0)
    transform = fit_projection(holes, dims)
    assert (transform.shape, transform.dtype) == ((width + 1, min(width, dims)), np.float32)
    vectors = project(holes, transform)
    assert not vectors[[0, 10, 402]].any()
    vectors = np.delete(vectors, [0, 10, 402], axis=0)
    np.testing.assert_allclose(vectors @ vectors.T, cosines(states, dims), atol=2e-4)
    for few in (holes[:1], holes[:2], states[:0]):
        with pytest.raises(StoreError, match="too few tokens"):
            fit_projection(few)


@pytest.mark.parametrize("value", [0, 1, 500])
def test_states_that_are_all_the_same(value: float) -> None:
    states = np.full((5, 8), value, np.float16)
    assert np.isfinite(fit_projection(states)).all()
    assert np.isfinite(project(states, fit_projection(states))).all()


@given(arrays(np.uint16, (5, 6)), st.booleans())
def test_any_state_is_of_length_1_or_0(bits: Any, wide: bool) -> None:
    states = bits.view(np.float16)
    transform = fit_projection(np.random.default_rng(0).normal(size=(40, 6)), 4)
    lengths = np.linalg.norm(project(np.float32(states) if wide else states, transform), axis=1)
    assert (abs(lengths - np.isfinite(states).all(axis=1)) < 1e-5).all()


def test_a_flat_index_finds_what_numpy_finds() -> None:
    index = DenseIndex(GOOD, VOCAB)
    np.testing.assert_allclose(stored(index), VECTORS, atol=1e-3)
    for query in stores.unit(40, seed=1):
        near, places = index.search(query, 50)
        expected = stored(index) @ query
        assert places.tolist() == np.argsort(-expected)[:50].tolist()
        np.testing.assert_allclose(near, expected[places], atol=1e-5)
    assert sorted(index.search(query, 1000)[1].tolist()) == list(range(300))
    assert (index.about(), index.nprobe) == ({"index": "Flat", "recall@10": 1.0}, 0)
    nothing = DenseIndex.from_vectors(GOOD["tokens"][:0], VECTORS[:0], GOOD["transform"], VOCAB)
    assert (DenseIndex(nothing, VOCAB).search(query, 5)[1] == -1).all()


@pytest.mark.parametrize("name", ["auto", "SQ8", "IVF32,SQ8", "IVF32,Flat", "HNSW16"])
def test_the_nearest_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of them as the index says."""
    monkeypatch.setattr(module, "MAX_EXHAUSTIVE", 1000)
    rng = np.random.default_rng(0)
    vectors = stores.unit(40, 16)[rng.integers(0, 40, 3000)] + 0.1 * rng.normal(size=(3000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = DenseIndex(dense(vectors, name), VOCAB)
    found = []
    for query in vectors[::11]:
        tenth = np.sort(vectors @ query)[-11]  # each finds itself, too
        near = vectors[index.search(query, 11)[1]] @ query
        found.append(min(10, int((near >= tenth - 1e-4).sum()) - 1) / 10)
    assert np.mean(found) == pytest.approx(float(index.recall[0]), abs=0.025)
    assert index.recall[0] >= (0.93 if name == "SQ8" else 0.95)
    assert index.about()["index"] == ("IVF256,SQ8" if name == "auto" else name)
    cells = index.nprobe
    assert (cells > 0) == (name == "auto" or name.startswith("IVF"))
    for _ in range(9):
        index.adjust_nprobe(faster=True)
    assert index.nprobe == max(cells // 8, min(cells, 1))
    for _ in range(9):
        index.adjust_nprobe(faster=False)
    assert index.nprobe == cells


def test_what_is_not_found_is_no_neighbour() -> None:
    index = DenseIndex(dense(stores.unit(16, seed=58), "IVF4,Flat"), VOCAB)
    found = [(index.search(query, 11)[1] >= 0).sum() - 1 for query in stored(index)]
    assert index.recall[0] <= np.mean(found) / 10


IMPOSSIBLE = ["nonsense", "", "PQ7", "LSH", "IVF9999,SQ8", "IDMap,Flat"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_index_that_cannot_be_made(name: str) -> None:
    with pytest.raises(StoreError, match=f"^'{name}'"):
        dense(VECTORS, name)


def test_how_to_index_can_be_changed_before_the_end(tmp_path: Path) -> None:
    corpus, store = texts(tmp_path / "texts"), tmp_path / "store"
    with pytest.raises(StoreError, match="'IVF4096,SQ8' cannot index"):
        make_dense(store, corpus, index="IVF4096,SQ8")
    make_dense(store, corpus, made_by=stores.interrupted(0), index="Flat")
    (index,) = opened(store)
    assert index.about()["index"] == "Flat"


@pytest.mark.parametrize("after", [0, 1, 4, 99])
def test_an_interrupted_build_goes_on(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """99: it is interrupted while its parts are joined."""
    corpus, store = texts(tmp_path / "texts"), tmp_path / "store"
    monkeypatch.setattr(DenseIndex, "join", stores.interrupted(0))
    with pytest.raises(stores.Interrupted):
        make_dense(store, corpus, made_by=stores.interrupted(after))
    monkeypatch.undo()
    assert Datastore(store).manifest.build
    for part in opened(store, min(after, 7)):
        assert part.about() == {"index": "SQfp16", "recall@10": 1.0}
        assert part.search(stored(part)[0], 1)[1].tolist() == [0]
    for change in ({"layer": 3}, {"model": {"name": "a table", "hash": "1"}}):
        if not after:
            break  # nothing was written, so any command may follow
        with pytest.raises(StoreError, match=r"interrupted build .* with other options"):
            make_dense(store, corpus, **change)
    make_dense(store, corpus)
    make_dense(tmp_path / "parts", corpus)
    assert files(store) == files(tmp_path / "parts")
    make(tmp_path / "whole", corpus, kind="dense", index=stores.tabled, settings=stores.SETTINGS)
    (index,), (whole,) = opened(store), opened(tmp_path / "whole")
    assert index.tokens.tolist() == whole.tokens.tolist() == stores.letters(corpus)
    assert np.array_equal(stored(index), stored(whole))
    expected = stores.tabled(np.array(stores.letters(corpus)), VOCAB)
    np.testing.assert_allclose(stored(index), stored(DenseIndex(expected, VOCAB)), atol=0.02)
    assert np.array_equal(index.transform, expected["transform"])
    assert (Datastore(store).documents, index.width) == (20, 12)
    assert Datastore(store).manifest.settings == stores.SETTINGS


def test_append_and_merge(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first, more = texts(tmp_path / "texts", 8), texts(tmp_path / "more", 8, seed=1)
    make_dense(store, first)
    reader, before = Datastore(store), files(store)
    with pytest.raises(stores.Interrupted):
        make_dense(store, more, append=True, made_by=stores.interrupted(1))
    assert files(store).items() >= before.items()
    assert opened(store, 2)[0].tokens.tolist() == stores.letters(first)
    with pytest.raises(StoreError, match="finish it first"):
        merge(store, 1 << 20, stores.silent)
    make_dense(store, more, append=True)
    assert files(store).items() >= before.items()
    parts = np.concatenate([stored(shard) for shard in opened(store, 2)])
    merge(store, 100, stores.silent)
    (index,) = opened(store)
    assert index.tokens.tolist() == stores.letters(first) + stores.letters(more)
    np.testing.assert_allclose(stored(index), parts, atol=0.02)
    assert reader.shards[0].tokens.tolist() == stores.letters(first)  # its files are gone
    assert reader.shards[0].search(parts[5], 1)[0][0] > 0.99
    turned = DenseIndex({**GOOD, "transform": 2 * GOOD["transform"]}, VOCAB)
    with pytest.raises(StoreError, match="different projections"):
        DenseIndex.join([DenseIndex(GOOD, VOCAB), turned], VOCAB)


def test_states_of_another_model_are_not_appended(tmp_path: Path) -> None:
    make_dense(tmp_path / "store", texts(tmp_path / "texts", 3))
    other = {"name": "a table", "hash": "1" * 32}
    with pytest.raises(StoreError, match=r"another model|other states"):
        make_dense(tmp_path / "store", tmp_path / "texts", append=True, model=other)


def test_vectors_are_read_from_the_file(tmp_path: Path) -> None:
    """Not from a copy: what is written to it is found."""
    make_dense(tmp_path / "store", texts(tmp_path / "texts", 3))
    (index,) = opened(tmp_path / "store")
    before = stored(index)
    (path,) = (tmp_path / "store").glob("*.index.npy")
    with open(path, "r+b") as file:
        file.seek(-1000, 2)
        file.write(bytes(500))
    assert (stored(index) != before).any(axis=1).sum() >= 60


RAW, BY_DISTANCE = GOOD["index"], faiss.IndexFlatL2(8)
BY_DISTANCE.add(VECTORS)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    **{f"{size} bytes": ({"index": RAW[:size]}, "be read") for size in (0, 1, 4, 30, 60, 999, -1)},
    "random": ({"index": np.random.default_rng(0).integers(0, 256, 5000, np.uint8)}, "be read"),
    "of int8": ({"index": RAW.astype(np.int8)}, "uint8"),
    "more tokens": ({"tokens": np.zeros(301, np.uint16)}, "one of 8 for each of 301 tokens"),
    "wide tokens": ({"tokens": GOOD["tokens"].astype(np.uint32)}, "not one row of uint16"),
    "distances": (
        {"index": faiss.serialize_index(BY_DISTANCE)},
        "another metric than the inner product",
    ),
    "other dims": ({"transform": np.ones((9, 7), np.float32)}, "one of 7 for each"),
    "half floats": ({"transform": GOOD["transform"].astype(np.float16)}, "`transform` is float16"),
    "flat": ({"transform": GOOD["transform"].ravel()}, r"not float32\[width \+ 1, dims\]"),
    "no state": ({"transform": GOOD["transform"][:1]}, "`transform` is"),
    "recalls": ({"recall": np.ones(2, np.float32)}, "`recall` must be one number"),
}
FOUND: dict[str, tuple[dict[str, Any], str]] = {
    "token": ({"tokens": np.full(300, VOCAB + 1, np.uint16)}, "outside the vocabulary"),
    "transform": ({"transform": GOOD["transform"] * np.float32("nan")}, "finite"),
    "vector": (dense(np.full((300, 8), np.nan, np.float32)), "finite"),
}
BAD = {
    "recall": ({"recall": np.full(1, np.nan, np.float32)}, "recall"),
    "place": (stores.cells(VECTORS, np.arange(300) + 5, 1), "index"),
    "no probes": (stores.cells(VECTORS, np.arange(300), 0), "index"),
}


@pytest.mark.parametrize("name", [*WRONG, *FOUND, *BAD])
def test_wrong_arrays_are_refused(name: str) -> None:
    change, message = {**WRONG, **FOUND, **BAD}[name]
    with pytest.raises(StoreError, match=message):  # noqa: PT012
        index = DenseIndex({**GOOD, **change}, VOCAB)
        assert name not in WRONG  # which are found at once
        index.search(VECTORS[0], 9)
        index.check(VOCAB)


@pytest.mark.parametrize("name", ["index", "tokens", "transform"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    make_dense(tmp_path / "store", texts(tmp_path / "texts", 3))
    store = Datastore(tmp_path / "store")
    path = store.path / store.manifest.shards[0].arrays[name].name
    whole = path.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    for damaged in (whole[:-1], whole[:200], b"", whole + b"\0", flipped):
        path.write_bytes(damaged)
        reader = store if damaged == flipped and name != "index" else None
        with pytest.raises(StoreError, match=path.name):
            (reader or Datastore(store.path)).check()
    path.unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match=path.name):
            Datastore(store.path)
        path.mkdir(exist_ok=True)


@pytest.mark.skipif(
    tuple(map(int, faiss.__version__.split(".")[:2])) < (1, 14),
    reason="this FAISS believes forged lengths; checksums keep damaged files from it",
)
@pytest.mark.parametrize("read", ["read_changed", "read_fast_scan"])
def test_no_index_ends_the_process(read: str, tmp_path: Path) -> None:
    program = f"from tests.helpers.stores import {read}; {read}(); print('done')"
    assert_harmless(program, "OMP_NUM_THREADS", tmp_path)


JUNK = [None, True, 3, -2, 1 << 70, 0.5, "x", [], [[]], {}, {"name": "x"}, {"name": 3, "hash": ""}]


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    manifest.save(tmp_path, manifest.Manifest("dense", VOCAB, {"name": "", "hash": ""}))
    raw = json.loads((tmp_path / manifest.NAME).read_text())
    good = stores.SETTINGS
    changed = [{**good, key: junk} for key in good for junk in JUNK]
    short = [{key: good[key] for key in good if key != gone} for gone in good]
    for settings in [*JUNK, *short, *changed]:
        (tmp_path / manifest.NAME).write_text(json.dumps({**raw, "settings": settings}))
        try:
            found = Datastore(tmp_path).manifest.settings
        except StoreError:
            continue
        assert (found == settings in changed, found["layer"] in (-1, 3)) == (True, True)
        assert isinstance("".join([*found["model"].values(), found["index"]]), str)


@pytest.mark.parametrize("kind", ["suffix", "trigram", "dense"])
@pytest.mark.parametrize("source", ["suffix", "dense"])
def test_the_texts_of_a_store(kind: str, source: str, tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts", 9)
    (corpus / "empty.txt").write_text("")
    (corpus / "zebra.txt").write_text((corpus / "000.txt").read_text())
    (make_dense if source == "dense" else make)(tmp_path / "source", corpus)
    index = stores.tabled if kind == "dense" else None
    made = stores.from_store(tmp_path / "made", tmp_path / "source", kind=kind)
    make(tmp_path / "direct", corpus, index=index, kind=kind, settings=stores.SETTINGS)
    assert (made.documents, files(made.path)) == (10, files(tmp_path / "direct"))
    made = stores.from_store(tmp_path / "fewer", tmp_path / "source", dedup=True)
    assert made.shards[0].tokens.tolist() == stores.letters(corpus)[: len(made)]
    assert made.documents == 9


def test_texts_of_tokens_beyond_the_vocabulary(tmp_path: Path) -> None:
    state = make_dense(tmp_path / "source", texts(tmp_path / "texts", 3))
    wrong = {**GOOD, "tokens": np.resize([5, 97, 6, VOCAB], 300).astype(np.uint16)}
    shard = write_shard(tmp_path / "source", 1, wrong, 75, 300)
    manifest.save(tmp_path / "source", state.with_shards((shard,), {}))
    with pytest.raises(StoreError, match="vocabulary"):
        stores.from_store(tmp_path / "made", tmp_path / "source", kind="dense")


@pytest.mark.parametrize("kind", ["trigram", "phrases", "ngram"])
def test_a_store_without_texts(kind: str, tmp_path: Path) -> None:
    make(tmp_path / "source", texts(tmp_path / "texts", 9), kind=kind)
    with pytest.raises(
        CorpusError, match=rf"kind {kind}\): give the corpus itself, or a datastore of kind s"
    ):
        stores.from_store(tmp_path / "made", tmp_path / "source")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stores.saved(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(("layer", "place"), [(-1, -1), (0, 1)])
def test_states_are_those_of_a_forward_pass(model: str, layer: int, place: int) -> None:
    rows = documents([1, 30, 7, 1, 64])
    index = DenseIndex(Embedding(model, layer)(stores.joined(rows), VOCAB), VOCAB)
    expected = stores.states(model, rows, place)
    np.testing.assert_allclose(stored(index), project(expected, index.transform), atol=2e-3)
    own = project(expected, fit_projection(expected))
    np.testing.assert_allclose(stored(index) @ stored(index).T, own @ own.T, atol=5e-3)
    assert (stored(index).any(axis=1) == (stores.joined(rows) != VOCAB)).all()


def test_long_documents_are_read_in_windows(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = documents([40, 16, 17, 1])
    monkeypatch.setattr(embedding, "WINDOW", 16)
    monkeypatch.setattr(embedding, "CONTEXT", 6)
    index = DenseIndex(Embedding(model)(stores.joined(rows), VOCAB), VOCAB)
    expected = stores.states(model, rows)
    for begin, end in ((16, 26), (26, 36), (36, 40), (74, 75)):  # windows but for a first one
        window = stores.joined(rows)[begin - 6 : end].tolist()
        expected[begin:end] = stores.states(model, [window])[6:-1]
    np.testing.assert_allclose(stored(index), project(expected, index.transform), atol=2e-3)


@given(st.lists(st.integers(0, 40), max_size=4), st.integers(1, 20), st.booleans())
def test_every_token_is_wanted_of_one_window(lengths: list[int], longest: int, cut: bool) -> None:
    tokens = stores.joined(documents(lengths))[: -1 if cut else None]
    seen = np.zeros(len(tokens), int)
    for window, first, place in embedding._windows(tokens, VOCAB, longest):
        assert first <= longest // 2
        assert first < len(window) <= longest
        seen[place : place + len(window) - first] += 1
        assert window.tolist() == tokens[place - first : place - first + len(window)].tolist()
    assert (seen == (tokens != VOCAB)).all()


def test_the_transform_is_fitted_to_a_corpus(model: str, tmp_path: Path) -> None:
    rows = documents([20, 30, 1])
    tokenizer = AutoTokenizer.from_pretrained(model)
    corpus = Corpus(find([str(stores.write_texts(tmp_path, rows))]))
    made, again = Embedding(model), Embedding(model)
    for each in (made, again):
        each.fit(Corpus((STDIN,)), tokenizer)
        assert each.transform is None  # it cannot be read twice
        each.fit(corpus, tokenizer)
    assert np.array_equal(made.transform, again.transform)
    expected = stores.states(model, rows)
    own, ours = (project(expected, each) for each in (fit_projection(expected), made.transform))
    np.testing.assert_allclose(ours @ ours.T, own @ own.T, atol=1e-3)


@pytest.mark.parametrize("family", ["bart", "t5", "whisper"])
def test_models_with_an_encoder_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has an encoder"):
        Embedding(stores.saved(tmp_path / family, family))


def test_a_dense_store_from_the_command_line(model: str, tmp_path: Path) -> None:
    store, corpus = (
        tmp_path / "store",
        stores.write_texts(tmp_path / "texts", documents([50, 50, 50])),
    )
    code, shown = specplug("build", store, corpus, "--kind", "dense", "--model", model)
    assert (code, "recall@10" in shown, specplug("append", store, corpus)[0]) == (0, True, 0)
    found = [stores.info(store)[each] for each in ("kind", "index", "shards", "tokens", "state")]
    assert found == ["dense", "SQ8", 2, 306, "complete"]
    assert 0.9 < stores.info(store)["recall@10"] <= 1.0
    one, other = Datastore(store).shards
    assert np.array_equal(stored(one), stored(other))  # they hold the same texts
    assert (specplug("merge", store)[0], specplug("check", store, "--deep")[0]) == (0, 0)
    smaller = stores.saved(tmp_path / "other", size=95)
    code, error = specplug("build", tmp_path / "new", store, "--tokenizer", smaller)
    assert (code, "whose token ids differ" in error) == (1, True)


def test_an_empty_store(model: str, tmp_path: Path) -> None:
    store, empty = tmp_path / "store", stores.write_texts(tmp_path / "empty", [[]])
    assert specplug("build", store, empty, "--kind", "dense", "--model", model)[0] == 0
    assert (stores.info(store)["tokens"], opened(store, 0)) == (0, [])
    assert (
        specplug("append", store, stores.write_texts(tmp_path / "texts", documents([9, 9])))[0] == 0
    )
    assert len(opened(store)[0].tokens) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--kind dense", "--model"),
        ("--kind dense --tokenizer MODEL", "--model NAME_OR_PATH"),
        ("--kind dense --model MODEL --index nonsense", "'nonsense' is not a FAISS index"),
        ("--kind dense --model MODEL --index IVF4096,SQ8", "IVF4096,SQ8"),
        ("--kind dense --model MODEL --layer 2", "0 to 1, and -1"),
        ("--kind dense --model /nowhere/at/all", "/nowhere/at/all"),
        ("--tokenizer MODEL --model MODEL", "--model is for --kind dense"),
    ],
)
def test_what_build_refuses(arguments: str, message: str, model: str, tmp_path: Path) -> None:
    corpus = stores.write_texts(tmp_path / "texts", documents([50]))
    given = [model if each == "MODEL" else each for each in arguments.split()]
    code, error = specplug("build", tmp_path / "store", corpus, *given)
    assert (code, message in error, len(error.strip().splitlines())) == (1, True, 1)
    assert not list(tmp_path.glob("store/*.npy")) or "IVF4096" in arguments


def test_a_store_of_another_kind_is_kept(model: str, tmp_path: Path) -> None:
    store, corpus = tmp_path / "store", stores.write_texts(tmp_path / "texts", documents([50]))
    assert specplug("build", store, corpus, "--tokenizer", model)[0] == 0
    code, error = specplug("build", store, corpus, "--kind", "dense", "--model", model)
    assert (code, "is a datastore of kind suffix" in error) == (1, True)


def test_an_unfinished_store_keeps_its_layer(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = tmp_path / "store", stores.write_texts(tmp_path / "texts", documents([50]))
    arguments = ["build", store, corpus, "--kind", "dense", "--model", model]
    monkeypatch.setattr(DenseIndex, "join", stores.interrupted(0))
    code, error = specplug(*arguments)
    assert (code, "the same command continues" in error) == (130, True)
    monkeypatch.undo()
    assert "unfinished" in stores.info(store)["state"]
    code, error = specplug(*arguments, "--layer", "0")
    assert (code, "with other options" in error) == (1, True)
    assert (specplug(*arguments)[0], len(opened(store)[0].tokens)) == (0, 51)


def test_a_damaged_model_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(DEMO_MODEL, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "a.txt").write_text("a text")
    store, text = tmp_path / "store", tmp_path / "a.txt"
    code, said = specplug("build", store, "--kind", "dense", "--model", broken, text)
    assert code == 1
    assert "broken cannot be loaded" in said
