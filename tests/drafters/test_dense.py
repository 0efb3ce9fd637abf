"""Dense drafting: votes as in plain Python, pointers that last while they agree, odd stores."""

from __future__ import annotations

import copy
import pickle
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug import SpecPlug
from hf_specplug.datastore.kinds.dense import DenseIndex
from hf_specplug.datastore.kinds.projection import fit_projection, project
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters import dense as drafting
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Step
from hf_specplug.drafters.dense import DenseDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError, StoreError
from hf_specplug.hf.hidden_states import signature
from hf_specplug.kernels import dense as kernels
from hf_specplug.tree import DraftTree
from tests.helpers import twins
from tests.helpers.runs import assert_harmless, plain
from tests.helpers.stores import documents, make, texts, write_texts
from tests.helpers.zoo import make as make_model
from tests.helpers.zoo import prompt

VOCAB, WIDTH = 2, 8
NONE = np.empty(0, np.int32)
HOSTILE = np.array([np.nan, np.inf, -np.inf, -3.0], np.float32)
NUMBER = st.floats(-100, 100, width=32) | st.sampled_from([np.nan, np.inf, -1e30, 3e38, 0.0])
SEED = st.integers(0, 1 << 32).map(np.random.default_rng)


def neighbours(rng: Any) -> tuple[Any, Any]:
    """(places, cosines), some of them impossible."""
    count = rng.integers(0, 60)
    cosines = rng.uniform(-1, 1, count).astype(np.float32)
    return rng.integers(-3, 43, count), np.where(
        rng.random(count) < 0.05, rng.choice(HOSTILE, count), cosines
    )


def pairs(near: tuple[Any, Any]) -> Any:
    return zip(near[0].tolist(), near[1].tolist(), strict=True)


def pointing(rng: Any) -> tuple[list[list[int]], list[twins.Pointer]]:
    """Some shards, and pointers that arrived in them, or anywhere."""
    shards, held = [], list[twins.Pointer]()
    for number in range(rng.integers(1, 4)):
        tokens = rng.integers(0, VOCAB, rng.integers(0, 40))
        tokens[rng.random(len(tokens)) < 0.05] = VOCAB  # separates documents
        shards.append(tokens.tolist())
        root = int(rng.integers(-1, VOCAB))
        held = twins.arrived(held, number, shards[-1], pairs(neighbours(rng)), root)
    for one in held:
        one.agreed = int(rng.integers(1, 12))
        if rng.random() < 0.1:
            one.place = int(rng.choice([*range(45), 1 << 40, (1 << 62) + 1]))
    return shards, list({(one.shard, one.place): one for one in held}.values())


def gathered(held: list[twins.Pointer]) -> tuple[Any, Any, int]:
    """As kernels keep them: (pointers, cosines, count)."""
    pointers = np.zeros((kernels.MAX_POINTERS, kernels.POINTER_COLUMNS), np.int64)
    cosines = np.zeros(kernels.MAX_POINTERS, np.float32)
    for row, one in enumerate(held):
        *pointers[row], cosines[row] = astuple(one)
    return pointers, cosines, len(held)


def assert_same(pointers: Any, cosines: Any, count: int, held: list[twins.Pointer]) -> None:
    rows = zip(pointers[:count].tolist(), cosines[:count].tolist(), strict=True)
    assert [(*row, cosine) for row, cosine in rows] == [astuple(one) for one in held]


@given(SEED)
def test_pointers_follow_and_arrive_as_in_plain_python(rng: Any) -> None:
    shards, held = pointing(rng)
    pointers, cosines, count = gathered(held)
    arrays = [np.array(tokens, np.uint16) for tokens in shards]
    emitted, root = rng.integers(-2, VOCAB + 1, rng.integers(0, 3)), int(rng.integers(-1, VOCAB))
    for number, tokens in enumerate(arrays):
        kernels.follow(tokens, number, pointers, count, emitted.astype(np.int32))
        held = twins.followed(held, number, shards[number], emitted.tolist())
    count = kernels.compact(pointers, cosines, count)
    assert_same(pointers, cosines, count, held)
    near = neighbours(rng)
    for number, tokens in enumerate(arrays):
        count = kernels.arrive(tokens, number, *near, root, pointers, cosines, count)
        held = twins.arrived(held, number, shards[number], pairs(near), root)
    assert_same(pointers, cosines, count, held)


def test_only_the_weakest_make_room() -> None:
    """Those that are less alike, and have not proved themselves."""
    rng, held = np.random.default_rng(0), list[twins.Pointer]()
    pointers, cosines, count = gathered(held)
    for _ in range(12):
        near, ones = (rng.choice(500, 30), rng.random(30, np.float32)), np.ones(500, np.uint16)
        count = kernels.arrive(ones, 0, *near, 1, pointers, cosines, count)
        held = twins.arrived(held, 0, ones.tolist(), pairs(near), 1)
        for place in rng.choice(count, 4).tolist():
            pointers[place, kernels.POINTER_AGREED] = held[place].agreed = 2
        assert_same(pointers, cosines, count, held)
    assert count == kernels.MAX_POINTERS


@given(SEED, st.integers(1, 3))
def test_votes_are_counted_as_in_plain_python(rng: Any, limit: int) -> None:
    """At every node of a tree, whatever drafter named its tokens."""
    shards, held = pointing(rng)
    pointers, cosines, count = gathered(held)
    ahead = np.full((kernels.MAX_POINTERS, kernels.LOOKAHEAD), -7, np.int32)
    for number, tokens in enumerate(shards):
        kernels.look(np.array(tokens, np.uint16), VOCAB, number, pointers, count, ahead)
    reading = [twins.continuation(one, shards[one.shard], VOCAB) for one in held]
    for row, tokens in zip(ahead[:count].tolist(), reading, strict=True):
        assert row == tokens + [-1] * (kernels.LOOKAHEAD - len(tokens))
    paths: list[list[int]] = [[]]
    pool = np.zeros((24, 7), np.int32)
    for node in range(1, 24):
        parent, token = int(rng.integers(max(0, node - 4), node)), int(rng.integers(0, VOCAB))
        paths.append([*paths[parent], token])
        pool[node, :3] = token, parent, len(paths[node])
    alive, out = np.zeros(24, np.uint64), np.empty((24 * limit, 3), np.int32)
    for node, path in enumerate(paths):
        nodes = np.array([node], np.int32)
        rows = kernels.expand(pointers, cosines, count, ahead, alive, pool, nodes, limit, out)
        expected = twins.voted(held, reading, path)
        named = out[:rows, 1].tolist()
        left = sorted(entry.votes for token, entry in expected.items() if token not in named)
        order = [*(expected[token].votes for token in named), *left[-1:]]
        assert (out[:rows, 0] == node).all()
        assert len(set(named)) == len(named) == min(limit, len(expected))
        assert all(b <= a * (1 + 1e-9) for a, b in pairwise(order))
        for token, bucket in out[:rows, 1:].tolist():
            assert bucket in {expected[token].bucket(nudge) for nudge in (-1e-9, 1e-9)}
            assert 0 <= bucket < kernels.BUCKETS


@given(st.lists(NUMBER, min_size=4, max_size=4))
def test_states_are_projected_as_the_stored_ones_were(state: list[float]) -> None:
    transform = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    out = np.empty(3, np.float32)
    usable = kernels.project(np.array(state, np.float32), transform, out)
    expected = twins.projected(state, transform)
    assert usable == (expected is not None)
    if expected is not None:
        assert out == pytest.approx(expected, abs=1e-5)
        (stored,) = project(np.array([state]), transform)
        assert not stored.any() or stored == pytest.approx(expected, abs=1e-5)
    assert not kernels.project(np.zeros(4, np.float32), np.zeros((5, 3), np.float32), out)


def test_every_bucket_has_a_prior() -> None:
    assert len(DenseDrafter().priors) == kernels.BUCKETS


CHECKED = """
from hypothesis import settings
settings.register_profile("checked", deadline=None)
settings.load_profile("checked")
from tests.drafters import test_dense
test_dense.test_pointers_follow_and_arrive_as_in_plain_python()
test_dense.test_votes_are_counted_as_in_plain_python()
test_dense.test_only_the_weakest_make_room()
print("done")
"""


@pytest.mark.slow
def test_no_index_leaves_its_array(tmp_path: Path) -> None:
    assert_harmless(CHECKED, "NUMBA_BOUNDSCHECK", tmp_path)


IDENTITY = np.vstack([np.eye(WIDTH), np.zeros((1, WIDTH))]).astype(np.float32)


def shard(
    tokens: Any, states: Any, transform: Any = IDENTITY, vocab: int = 96, index: str = "Flat"
) -> DenseIndex:
    """An index in memory."""
    vectors = project(np.asarray(states), transform)
    part = DenseIndex(DenseIndex.from_vectors(np.array(tokens), vectors, transform, vocab), vocab)
    made = DenseIndex(DenseIndex.join([part], vocab, {"index": index}), vocab)
    made.check(vocab)
    return made


def drafter(*shards: DenseIndex, vocab: int = 96) -> DenseDrafter:
    """One that reads indices in memory."""
    made, described = DenseDrafter(), SimpleNamespace(vocab_size=vocab)
    made._opened(SimpleNamespace(shards=shards, manifest=described))  # type: ignore[arg-type]
    made.begin(Context([0], vocab))
    return made


def searching(made: Drafter, vocab: int = 96) -> TreeSearch:
    def fail(_: Drafter, error: Exception) -> None:
        raise error

    return TreeSearch([made], Mixer([made.name]), vocab, fail)


def observe(made: Drafter, emitted: Any, state: Any = None) -> None:
    made.observe(Step.of_text(NONE, 0, [], emitted, None, state))


class Speech:
    """Text of phrases that recur with variations; a state tells the last tokens, but for noise."""

    vocab = 30

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.phrases = self.rng.integers(0, self.vocab, (12, 14))
        self.meaning = self.rng.normal(size=(3, self.vocab + 1, WIDTH))

    def text(self, count: int, end: tuple[int, ...] = ()) -> Any:
        tokens: list[int] = []
        while len(tokens) < count:
            phrase = self.rng.choice(self.phrases)[: self.rng.integers(4, 15)].copy()
            phrase[self.rng.random(len(phrase)) < 0.06] = self.rng.integers(0, self.vocab)
            tokens += [*phrase.tolist(), *end]
        return np.array(tokens[:count])

    def states(self, tokens: Any) -> Any:
        said = sum(0.5**back * self.meaning[back, np.roll(tokens, back)] for back in range(3))
        return (said + 0.2 * self.rng.normal(size=said.shape)).astype(np.float32)

    def drafters(self, *sizes: int) -> tuple[DenseDrafter, twins.DenseTwin]:
        """For shards of so many tokens."""
        parts = [self.text(size, end=(self.vocab,)) for size in sizes]
        states = [self.states(tokens) for tokens in parts]
        transform = fit_projection(states[0])
        shards = [shard(*part, transform, self.vocab) for part in zip(parts, states, strict=True)]
        kept = [np.concatenate(list(each.blocks())) for each in shards]  # rounded to float16
        texts = list(zip((tokens.tolist() for tokens in parts), kept, strict=True))
        made = drafter(*shards, vocab=self.vocab)
        made.priors = self.rng.uniform(0.02, 0.98, kernels.BUCKETS).astype(np.float32)
        return made, twins.DenseTwin(texts, transform, self.vocab, made.priors)


def same(one: DraftTree, other: DraftTree) -> bool:
    names = ("tokens", "parents", "probs", "sources")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("sizes", [(1500,), (400, 900, 60)])
@pytest.mark.parametrize("seed", range(2))
def test_the_same_trees_as_the_plain_python_twin(sizes: tuple[int, ...], seed: int) -> None:
    """Over a text, with pointers that stay in use, and trees that grow again, and wider."""
    speech = Speech(seed)
    made, twin = speech.drafters(*sizes)
    searches = [searching(one, speech.vocab) for one in (made, twin)]
    text, place, grown, kept = speech.text(200), 1, 0, 0
    states = speech.states(text)
    while place + 8 < len(text):
        emitted = text[place : place + 1 + place % 3]
        place += len(emitted)
        for search in searches:
            search.learn(emitted.astype(np.int32))
            observe(search.drafters[0], emitted, states[place - 2])
        for limit in ((7, 63), (40,), (3, 300), (63, 7))[place % 4]:
            trees = [search.grow(int(emitted[-1]), limit, 10) for search in searches]
            assert same(*trees)
        grown += len(trees[0])
        kept += sum(one.agreed > 1 for one in twin.pointers)
    assert grown > 200
    assert kept > 30


def asked(made: DenseDrafter, root: int, path: tuple[int, ...] = ()) -> list[int]:
    """The tokens that it names after a path."""
    pool = np.zeros((64, 7), np.int32)
    for node, token in enumerate((root, *path)):
        pool[node, :3] = token, max(node - 1, 0), node
        rows = made.expand(Frontier(np.array([node], np.int32), pool, root))
    return rows[:, 1].tolist()  # type: ignore[no-any-return]


def sense(number: int) -> Any:
    return np.eye(WIDTH, dtype=np.float32)[number]


TEXT = [7, 1, 2, 3, 4, 8, 1, 2, 5, 6, 9, 3, 3]
STATES = [sense(0) if token in (7, 8, 9) else sense(7) for token in TEXT]


def test_pointers_last_while_they_agree() -> None:
    made = drafter(shard(TEXT, STATES))
    observe(made, [1], sense(0))
    assert asked(made, 1) == [2]  # after 7 1 and 8 1; 9 was like them, but followed by 3
    assert sorted(asked(made, 1, (2,))) == [3, 5]
    assert asked(made, 1, (2, 5)) == [6]
    assert asked(made, 1, (3,)) == []
    observe(made, [2])
    assert sorted(asked(made, 2)) == [3, 5]
    observe(made, [5, 6])
    assert asked(made, 6) == [9]  # one of two has agreed
    observe(made, [4])
    observe(made, [9])
    assert asked(made, 9) == []  # lost is lost
    observe(made, [3], sense(0))
    assert asked(made, 3) == [3, 4]  # what is more like comes first
    made.begin(Context([0], 96))
    assert asked(made, 3) == []  # another text


@pytest.mark.parametrize("value", [None, np.nan, np.inf, -np.inf, 0.0])
def test_states_that_say_nothing(value: float | None) -> None:
    made = drafter(shard(TEXT, STATES))
    observe(made, [1], sense(0))
    assert asked(made, 1) == [2]
    state = None if value is None else np.full(WIDTH, value, np.float32)
    observe(made, [2], state)
    assert sorted(asked(made, 2)) == [3, 5]
    observe(made, [4], state)
    assert asked(made, 4) == []


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """What is searched for."""
    made: list[list[float]] = []
    search = DenseIndex.search

    def noted(self: DenseIndex, vector: Any, count: int) -> Any:
        made.append(vector.tolist())
        return search(self, vector, count)

    monkeypatch.setattr(DenseIndex, "search", noted)
    return made


def test_a_search_happens_once_a_step_and_only_if_asked(searches: list[list[float]]) -> None:
    made = drafter(shard(TEXT, STATES))
    search = searching(made)
    observe(made, [1], sense(1))
    assert not len(search.grow(1, 9, 4, ask=[False]))
    observe(made, [1], sense(0))
    tree = search.grow(1, 9, 4)
    assert len(tree)
    assert same(search.grow(1, 9, 4), tree)
    observe(made, [2], sense(3))
    search.grow(2, 9, 4, ask=[False])
    observe(made, [3], sense(4))  # what was not asked for is not made up for
    assert 4 in asked(made, 3)
    assert searches == [sense(0).tolist(), sense(4).tolist()]


def test_shards_vote_together(searches: list[list[float]]) -> None:
    """Two say 5, one says 4, which is as like."""
    made = drafter(*[shard([7, 1, token], [sense(0)] * 3) for token in (5, 5, 4)])
    observe(made, [1], sense(0))
    assert asked(made, 1) == [5, 4]
    assert len(searches) == 3
    observe(made, [4])
    assert made._pointers[: made._count, kernels.POINTER_SHARD].tolist() == [2]


def test_threads_are_left_as_they_are() -> None:
    one, seen = shard(TEXT, STATES), []

    def search(vectors: Any, count: int) -> Any:
        seen.append(faiss.omp_get_max_threads())
        raise RuntimeError("no")

    faiss.omp_set_num_threads(3)
    try:
        one.search(sense(0), 5)
        assert faiss.omp_get_max_threads() == 3
        one.index = SimpleNamespace(search=search)
        with pytest.raises(StoreError, match="cannot be searched"):
            one.search(sense(0), 5)
        assert (seen, faiss.omp_get_max_threads()) == ([1], 3)
    finally:
        faiss.omp_set_num_threads(1)


def test_slow_searches_look_into_fewer_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as pays for time: an eighth at least, and all again when searches are quick."""
    rng = np.random.default_rng(0)
    tokens, states = rng.integers(0, 96, 2000), rng.normal(size=(2000, WIDTH))
    made = drafter(shard(tokens, states, index="IVF32,Flat"))
    ((one, _),) = made._shards
    one.index.nprobe = one._tuned = 16
    found = []
    for patience in [-1.0, 1e9] * 20 + [-1.0] * 80 + [1e9] * 80:  # as many in time at first
        monkeypatch.setattr(drafting, "PATIENCE", patience)
        observe(made, [5], rng.normal(size=WIDTH).astype(np.float32))
        asked(made, 5)
        found.append(one.nprobe)
    assert found[:55] == [16] * 55
    assert found[55] == 8
    assert found[119] == 2
    assert found[-1] == 16


class States:
    """Indexes a shard by random states, as `embedding` does by those of a model."""

    def __init__(self, width: int = WIDTH) -> None:
        self.rng, self.width = np.random.default_rng(0), width
        self.transform = fit_projection(self.rng.normal(size=(99, width)))

    def __call__(self, tokens: Any, vocab: int) -> dict[str, Any]:
        vectors = project(self.rng.normal(size=(len(tokens), self.width)), self.transform)
        return DenseIndex.from_vectors(tokens, vectors, self.transform, vocab)


def described(digest: str, name: str = "nobody", layer: int = -1) -> dict[str, Any]:
    """What the manifest of a dense store says."""
    model = {"name": name, "hash": digest}
    return {"model": model, "layer": layer, "metric": "inner_product", "index": "Flat"}


def dense_store(
    folder: Path,
    settings: dict[str, Any],
    index: Any = None,
    rows: list[list[int]] | None = None,
    letters: int = 96,
) -> Path:
    """A store of token sequences; of random ones, with random states, if none are given."""
    rows = documents([300] * 4) if rows is None else rows
    folder.mkdir(exist_ok=True)
    plan: dict[str, Any] = {"kind": "dense", "settings": settings, "index": index or States()}
    make(folder / "store", write_texts(folder / "texts", rows), letters=letters, **plan)
    return folder / "store"


@pytest.mark.parametrize("case", ["right", "empty", "width", "model", "ids"])
def test_what_does_not_fit_is_dropped(case: str, tmp_path: Path) -> None:
    model = make_model("llama")
    made_by = signature(model) if case != "model" else "0" * 32
    store = dense_store(
        tmp_path,
        described(made_by, "some/one"),
        States(WIDTH if case == "width" else 32),
        [[]] if case == "empty" else None,
        101 if case == "ids" else 96,
    )
    reason = {
        "width": "states have 32 numbers, those of a datastore 8",
        "model": "states of another model, some/one",
        "ids": "built with another tokenizer",
    }.get(case, "")
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    expected, _ = plain(model, prompt(model), **settings)
    plug = SpecPlug(drafters=[DenseDrafter([store])], nodes=16)
    output = model.generate(**prompt(model), **settings, custom_generate=plug)
    assert output.tolist() == expected.tolist()
    assert reason in plug.stats.dropped.get("dense", "")
    assert bool(plug.stats.dropped) == bool(reason)
    assert (plug.stats.drafted > 0) == (case == "right")


def test_what_is_refused(tmp_path: Path) -> None:
    made = DenseDrafter([dense_store(tmp_path / "one", described("a", layer=2))])
    assert made.layer == 2
    for name, other in (("a", described("a", layer=1)), ("b", described("b", layer=2))):
        with pytest.raises(OptionError, match=r"one of them at a time|draft from one of them"):
            made.add(Datastore(dense_store(tmp_path / name, other)))
    make(tmp_path / "suffix", texts(tmp_path / "texts", 2))
    for one in (made, DenseDrafter()):
        with pytest.raises(OptionError, match="reads stores of kind dense"):
            one.add(Datastore(tmp_path / "suffix"))
    assert len(made.stores) == 1


def test_copies_go_on_with_the_same_store(tmp_path: Path) -> None:
    store = dense_store(tmp_path, described("a"))
    made = DenseDrafter([store])
    made.begin(Context([0], 96))
    (one,) = made.stores[0].shards
    _, places = one.search(sense(0), 1)
    root = int(one.tokens[places[0] + 1])
    state = np.linalg.solve(one.transform[:-1].T, sense(0) - one.transform[-1])
    observe(made, [root], state.astype(np.float32))
    before = [copy.deepcopy(made), pickle.loads(pickle.dumps(made))]
    expected = asked(made, root)
    observe(made, expected[:1])
    after = [copy.deepcopy(made), pickle.loads(pickle.dumps(made))]
    assert expected
    assert [asked(one, root) for one in before] == [expected] * 2
    assert [asked(one, expected[0]) for one in after] == [asked(made, expected[0])] * 2
    assert all([each.path for each in one.stores] == [store] for one in (*before, *after))
    assert len(pickle.dumps(made)) < 100_000
