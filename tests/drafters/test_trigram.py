"""Tri-grams: counted as in plain Python, adapted within bounds, harmless whatever a file holds."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_specplug import DEMO_MODEL, SpecPlug, cli
from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.folder import write_shard
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.kinds.contract import token_dtype
from hf_specplug.datastore.kinds.trigram import MAX_SUCCESSORS, MAX_VOCAB, TrigramIndex
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters import trigram as drafting
from hf_specplug.drafters.contract import Context, Frontier, Step
from hf_specplug.drafters.trigram import TrigramDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.errors import StateError, StoreError
from hf_specplug.kernels import trigram as kernels
from hf_specplug.kernels.buckets import PROB_BUCKETS
from hf_specplug.published import completed
from hf_specplug.published.aded import Aded
from hf_specplug.tree import DraftTree
from tests.drafters.test_rest import store_of
from tests.helpers import twins
from tests.helpers.runs import assert_harmless, new_tokens, plain
from tests.helpers.stores import make, silent, texts
from tests.helpers.zoo import make as make_model
from tests.helpers.zoo import prompt

VOCAB = 4
DOCUMENTS = st.lists(st.integers(0, VOCAB), max_size=80)  # the last id separates
TEXT = st.lists(st.integers(0, VOCAB - 1), max_size=60)
GREEDY: dict[str, Any] = {"max_new_tokens": 60, "do_sample": False}
NONE = np.empty(0, np.int32)


def index(tokens: Any, vocab: int = VOCAB) -> TrigramIndex:
    made = TrigramIndex(TrigramIndex.build(np.array(tokens, token_dtype(vocab)), vocab), vocab)
    made.check(vocab)
    return made


def arrays(shard: TrigramIndex) -> dict[str, Any]:
    return {name: getattr(shard, name) for name in TrigramIndex.array_names}


def same(one: TrigramIndex, other: TrigramIndex) -> bool:
    return all(
        (getattr(one, name) == getattr(other, name)).all() for name in TrigramIndex.array_names
    )


def read(shard: TrigramIndex) -> dict[tuple[int, int], tuple[int, list[tuple[int, int]]]]:
    """What an index holds, as the twin has it."""
    firsts = np.repeat(np.arange(len(shard.firsts) - 1), np.diff(shard.firsts.astype(int)))
    found = {}
    for context, pair in enumerate(zip(firsts.tolist(), shard.seconds.tolist(), strict=True)):
        part = slice(*shard.offsets[context : context + 2].tolist())
        rows = zip(shard.successors[part].tolist(), shard.counts[part].tolist(), strict=True)
        found[pair] = int(shard.totals[context]), list(rows)
    return found


def drafter(shards: list[TrigramIndex], vocab: int = VOCAB) -> TrigramDrafter:
    """One that reads indices in memory."""
    made = TrigramDrafter()
    for shard in shards:
        store = SimpleNamespace(shards=[shard], manifest=SimpleNamespace(vocab_size=vocab))
        made._opened(store)  # type: ignore[arg-type]
    return made


def step(tokens: Any) -> Step:
    return Step.of_text(NONE, 0, [], tokens, None)


def named(made: TrigramDrafter, root: int) -> list[tuple[int, int]]:
    """(token, bucket) after the text."""
    pool = np.zeros((2, 7), np.int32)
    rows = made.expand(Frontier(np.zeros(1, np.int32), pool, root))
    assert (rows[:, 0] == 0).all()
    return [(token, bucket) for _, token, bucket in rows.tolist()]


@given(DOCUMENTS)
def test_an_index_counts_as_plain_python_does(tokens: list[int]) -> None:
    assert read(index(tokens)) == twins.trigrams(tokens, VOCAB)


@given(st.lists(DOCUMENTS, min_size=1, max_size=4))
def test_joined_shards_are_the_index_of_all(parts: list[list[int]]) -> None:
    shards = [index(tokens) for tokens in parts]
    joined = TrigramIndex(TrigramIndex.join(shards, VOCAB), VOCAB)
    joined.check(VOCAB)
    assert same(joined, index([token for tokens in parts for token in [*tokens, VOCAB]]))


def test_no_trigram_crosses_documents() -> None:
    assert read(index([0, 1, 4, 2, 0, 1, 3, 4])) == {(0, 1): (1, [(3, 1)]), (2, 0): (1, [(1, 1)])}
    assert read(index([4, 4, 4])) == read(index([0, 1])) == read(index([])) == {}


@pytest.mark.parametrize("vocab", [100, 70_000])
def test_the_most_frequent_successors_are_kept(vocab: int) -> None:
    """Of 20, with the total of all of them; of equal ones the lower ids."""
    text = [token for i in range(20) for _ in range(1 + i // 5) for token in (7, 8, i, vocab)]
    total, rows = read(index(text, vocab))[7, 8]
    assert total == 50
    order = [*range(15, 20), *range(10, 15), 5, 6]
    assert rows == [(token, 1 + token // 5) for token in order]
    assert len(rows) == MAX_SUCCESSORS


def test_counts_that_are_too_large_keep_their_proportions() -> None:
    text = np.tile([0, 1, 2, VOCAB], 200_000)
    text[2::40] = 3
    text[2] = 0
    total, rows = read(index(text))[0, 1]
    assert [token for token, _ in rows] == [2, 3, 0]
    assert rows[0][1] == 65_535
    assert [count / total for _, count in rows] == pytest.approx([0.9, 0.1, 5e-6], abs=2e-5)
    joined = TrigramIndex(TrigramIndex.join([index(text)] * 2, VOCAB), VOCAB)
    joined.check(VOCAB)
    again, twice = read(joined)[0, 1]
    assert [count / again for _, count in twice] == pytest.approx([0.9, 0.1, 5e-6], abs=4e-5)


def test_vocabularies_have_a_limit() -> None:
    with pytest.raises(StoreError, match="at most 2,097,151 token ids"):
        TrigramIndex.build(np.zeros(3, np.uint32), MAX_VOCAB + 1)
    assert read(index([MAX_VOCAB - 1] * 3, MAX_VOCAB)) == {
        (MAX_VOCAB - 1, MAX_VOCAB - 1): (1, [(MAX_VOCAB - 1, 1)])
    }


def test_append_and_merge(tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts", 12)
    make(tmp_path / "whole", corpus, kind="trigram")
    make(tmp_path / "parts", corpus, kind="trigram", shard_tokens=400)
    assert len(Datastore(tmp_path / "parts").shards) > 2
    more = texts(tmp_path / "more", 3, seed=1)
    for name in ("whole", "parts"):
        make(tmp_path / name, more, append=True)
        merge(tmp_path / name, 100, silent)  # joins all, whatever their size
        Datastore(tmp_path / name).check(deep=True)
    (one,), (other,) = (Datastore(tmp_path / name).shards for name in ("whole", "parts"))
    assert same(one, other)
    assert Datastore(tmp_path / "parts").manifest.kind == "trigram"


def test_the_commands_take_it(tmp_path: Path) -> None:
    def specplug(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    text, store = tmp_path / "a.txt", str(tmp_path / "store")
    text.write_text("def one():\n    return one\n" * 9)
    specplug("build", store, str(text), "--kind", "trigram", "--tokenizer", str(DEMO_MODEL))
    text.write_text("def two():\n    return two\n" * 9)
    specplug("append", store, str(text))
    info = json.loads(specplug("info", store, "--format", "json"))
    assert (info["kind"], info["documents"], info["shards"]) == ("trigram", 2, 2)
    specplug("merge", store)
    assert "unchanged since it was written" in specplug("check", store, "--deep")
    rows = json.loads(specplug("query", store, "def two():\n    return", "--format", "json"))
    assert {row["text"] for row in rows if row["parent"] < 0} >= {" one", " two"}


def damaged(shard: TrigramIndex, name: str, place: int, value: int) -> TrigramIndex:
    changed = {key: array.copy() for key, array in arrays(shard).items()}
    changed[name][place] = value
    return TrigramIndex(changed, VOCAB)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("firsts", 0, 1, "does not divide the contexts"),
        ("firsts", 2, (1 << 32) - 1, "does not divide the contexts"),
        ("seconds", 1, VOCAB, "outside the vocabulary"),
        ("successors", -1, VOCAB, "outside the vocabulary"),
        ("seconds", 0, VOCAB - 1, "contexts are not sorted"),
        ("offsets", -1, 0, "does not divide the successors"),
        ("offsets", 1, 0, "no successor, or more than 12"),
        ("counts", 0, 0, "not sorted by their counts"),
        ("totals", 0, 0, "outnumber its occurrences"),
    ],
)
def test_a_wrong_index_is_found(name: str, place: int, value: int, message: str) -> None:
    shard = damaged(index(np.random.default_rng(0).integers(0, VOCAB, 200)), name, place, value)
    for look in (shard.check, lambda vocab: TrigramIndex.join([shard, shard], vocab)):
        with pytest.raises(StoreError, match=message):
            look(VOCAB)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    whole = arrays(index([0, 1, 2, 3]))
    for name in TrigramIndex.array_names:
        for wrong in (whole[name][:-1], whole[name].astype(np.int32), whole[name][None]):
            with pytest.raises(StoreError, match=r"fit together|not one row of"):
                TrigramIndex({**whole, name: wrong}, VOCAB)


@settings(deadline=None)
@given(st.lists(DOCUMENTS, max_size=3), TEXT, TEXT, st.integers(0, 60))
def test_corpora_and_text_are_one_distribution(
    stores: list[list[int]], text: list[int], more: list[int], split: int
) -> None:
    """Every path is continued by P of its last two tokens, the likeliest first."""
    made = drafter([index(tokens) for tokens in stores])
    made.begin(Context(text[:split], VOCAB))
    made.observe(step(text[split:]))
    pool = np.zeros((len(more) + 1, 7), np.int32)
    for node, token in enumerate(more, start=1):
        pool[node, :2] = token, node - 1
    frontier = Frontier(np.arange(len(pool), dtype=np.int32), pool, text[-1] if text else -1)
    rows = made.expand(frontier)
    steps = np.array([0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9])
    for node in frontier.nodes.tolist():
        found = rows[rows[:, 0] == node]
        pair = tuple([*text, *more[:node]][-2:])
        expected = (
            twins.trigram_chances(
                stores, VOCAB, text, pair, kernels.CORPUS, drafting.DECAY, kernels.SUCCESSORS
            )
            if len(pair) == 2
            else {}
        )
        assert set(found[:, 1].tolist()) == set(expected)
        total = sum(twins.trigrams(tokens, VOCAB).get(pair, (0, []))[0] for tokens in stores)
        support = (total > 0) + 0 + (total > 3) + (total > 15)
        chances = [expected[token][0] for token in found[:, 1].tolist()]
        assert sum(chances) <= 1 + 1e-6
        assert all(a >= b - 1e-6 for a, b in pairwise(chances))
        for token, bucket in found[:, 1:].tolist():
            chance, weight = expected[token]
            strength = int(weight > 0) + int(weight >= 1.5)
            assert bucket // PROB_BUCKETS == strength * kernels.SUPPORTS + support
            near = {int((steps <= chance + slack).sum()) for slack in (-1e-6, 1e-6)}
            assert bucket % PROB_BUCKETS in near


def test_a_new_habit_overtakes_an_old_one() -> None:
    made = TrigramDrafter()
    made.begin(Context([1, 2, 5] * 200, 10))
    assert named(made, 5) == [(1, 2 * kernels.SUPPORTS * PROB_BUCKETS + 7)]
    for turn in range(1, 5):
        made.observe(step([1, 2, 7] if turn == 1 else [7, 1, 2, 7]))
        made.observe(step([1, 2]))
        first = named(made, 2)[0][0]
        if first == 7:
            break
    assert 1 < turn <= 4
    assert [token for token, _ in named(made, 2)] == [7, 5]


def test_what_is_unknown_gets_nothing() -> None:
    made = drafter([index([0, 1, 2])])
    for text in ([], [0], [2, 1], [0, -1], [-1, 1], [3, 0]):
        made.begin(Context(text, VOCAB))
        assert named(made, text[-1] if text else -1) == []
    made.begin(Context([0, 1], VOCAB))
    assert [token for token, _ in named(made, 1)] == [2]


def test_memory_is_bounded_and_keeps_what_is_recent() -> None:
    made, rng = TrigramDrafter(), np.random.default_rng(0)
    made.begin(Context([], 2000))
    for _ in range(4):
        made.observe(step(rng.integers(0, 2000, 50_000)))
    kept = [value for value in vars(made.table).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in kept) < 6_000_000
    rows = len(made.state_dict()["keys"])
    assert 0.9 * drafting.ROWS < rows <= drafting.ROWS
    made.observe(step([5, 6, 7, 5, 6]))
    assert named(made, 6)[0][0] == 7


def test_the_clock_goes_on_for_ever() -> None:
    made, twin = (TrigramDrafter() for _ in range(2))
    for one in (made, twin):
        one.begin(Context([1, 2, 3, 1, 2, 4], 10))
    made.table.clock = (1 << 31) - 3
    for one in (made, twin):
        one.observe(step([1, 2, 4, 1, 2]))
    assert made.table.clock < 100
    assert named(made, 2) == named(twin, 2)


def taught() -> TrigramDrafter:
    made = TrigramDrafter()
    made.begin(Context(np.random.default_rng(0).integers(0, 6, 300), 50))
    return made


def test_state_comes_back_and_copies_read_the_same_store(tmp_path: Path) -> None:
    make(tmp_path / "store", texts(tmp_path / "texts", 3), kind="trigram")
    made, fresh = TrigramDrafter([tmp_path / "store"]), TrigramDrafter([tmp_path / "store"])
    made.begin(Context(np.random.default_rng(0).integers(97, 103, 300), 200))
    fresh.load_state_dict(made.state_dict())
    fresh.tail[:] = made.tail
    expected = named(made, int(made.tail[1]))
    assert len(expected) > 3
    for one in (fresh, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert named(one, int(made.tail[1])) == expected
        assert [store.path for store in one.stores] == [tmp_path / "store"]
    made.begin(Context([], 201))  # another vocabulary: these were other tokens
    assert not len(made.state_dict()["keys"])


def test_a_copy_for_another_vocabulary_clears_nothing() -> None:
    made = taught()
    state = made.state_dict()
    other = made.for_another_call()
    other.begin(Context([1, 2, 3, 1, 2], (1 << 31) - 1))
    assert named(other, 2) == [(3, 1 * kernels.SUPPORTS * PROB_BUCKETS + 6)]
    for key, array in made.state_dict().items():
        assert np.array_equal(array, state[key])
    assert made.table is not other.table


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("keys", lambda a: a[:-1], "must be"),
        ("keys", lambda a: a.astype(np.int64), "must be uint64"),
        ("keys", lambda a: 0 * a, "distinct and not 0"),
        ("ids", lambda a: a + 50, r"must lie in \[-1, 50\)"),
        ("ids", lambda a: a - 9, r"must lie in \[-1, 50\)"),
        ("ids", lambda a: 0 * a, "distinct"),
        ("weights", lambda a: -a, r"lie in \[0, 5\]"),
        ("weights", lambda a: 9 + a, r"lie in \[0, 5\]"),
        ("weights", lambda a: np.nan * a, r"lie in \[0, 5\]"),
        ("weights", lambda a: a[:, ::-1].copy(), "descending"),
        ("weights", lambda a: a[:, :-1].copy(), "must be"),
        ("visits", lambda a: 0 * a, "visited"),
        ("vocab_size", lambda a: -a, "no table"),
        ("vocab_size", lambda a: a[:0], "must be"),
        ("more", lambda a: NONE, "has the arrays"),
    ],
)
def test_hostile_states(key: str, change: Any, message: str) -> None:
    made = taught()
    state = made.state_dict()
    with pytest.raises(StateError, match=message):
        made.load_state_dict({**state, key: change(state.get(key))})
    assert (made.state_dict()["keys"] == state["keys"]).all()


@pytest.mark.parametrize("published", [None, "aded"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_output_stays_the_same(tmp_path: Path, do_sample: bool, published: str | None) -> None:
    model = make_model("llama")
    inputs = prompt(model)
    sampling = {**GREEDY, "do_sample": do_sample, "top_k": 20} if do_sample else GREEDY
    expected, state = plain(model, inputs, seed=3, **sampling)
    store = store_of(tmp_path / "answer", new_tokens(expected, 60), kind="trigram")
    plug = SpecPlug(drafters=[TrigramDrafter([store])], nodes=16, published=published)
    torch.manual_seed(3)
    output = model.generate(**inputs, **sampling, custom_generate=plug)
    assert output.tolist() == expected.tolist()
    assert torch.equal(torch.get_rng_state(), state)
    assert not plug.stats.dropped
    assert plug.stats.accepted_by["trigram"] > 20


def aded(made: TrigramDrafter, vocab: int, text: list[int]) -> Aded:
    """The paper's search, at the end of a text."""

    def fail(_: Any, error: Exception) -> None:
        raise error

    search = Aded([made], Mixer(["trigram"]), vocab, fail)
    search.begin(Context(text, vocab))
    return search


def paths(tree: DraftTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for node, parent in enumerate(tree.parents.tolist()):
        assert parent < node
        found.append((*(found[parent] if parent >= 0 else ()), int(tree.tokens[node])))
    assert len(set(found)) == len(found)
    return found


@pytest.mark.parametrize("shards", [0, 1, 2])
def test_the_published_search_draws_a_tree(shards: int) -> None:
    rng = np.random.default_rng(1)
    corpora = [rng.integers(0, 30, 3000).tolist() for _ in range(shards)]
    made = drafter([index(tokens, 30) for tokens in corpora], 30)
    text = rng.integers(0, 30, 500).tolist()
    text += text[-6:-4]  # a pair that is recent
    pairs: dict[tuple[int, int], set[int]] = {}
    for tokens in (*corpora, text):
        for (first, second), (_, rows) in twins.trigrams(tokens, 30).items():
            pairs.setdefault((first, second), set()).update(token for token, _ in rows)
    for limit, depth in ((1, 9), (7, 9), (40, 9), (40, 2), (100, 5)):
        tree, again = (aded(made, 30, text).grow(text[-1], limit, depth) for _ in range(2))
        assert (tree.tokens == again.tokens).all()
        drawn = paths(tree)
        assert 0 < len(drawn) <= min(limit, 48)
        assert max(map(len, drawn)) <= min(depth, 5)
        assert (tree.sources == 1).all()
        assert ((tree.probs > 0) & (tree.probs <= 1)).all()
        for path in drawn:
            *_, first, second, third = [*text, *path]
            assert third in pairs[first, second]
    assert paths(aded(made, 30, text).grow(text[-1], 3, 9, chain=True))[-1:]
    for limit, depth in ((0, 9), (9, 0)):
        assert not len(aded(made, 30, text).grow(text[-1], limit, depth))


def test_the_published_search_prefers_what_is_likely() -> None:
    """Of 4 successors the first follows 97 times of 100, and is followed by one only."""
    text = [0, 1, 2, 3] * 97 + [0, 1, 4, 5, 0, 1, 5, 5, 0, 1, 6, 5, 9]
    made = drafter([index(text, 9)], 9)
    drawn = paths(aded(made, 9, [7, 0, 1]).grow(1, 5, 9))
    assert drawn == [(2,), (2, 3), (2, 3, 0), (2, 3, 0, 1), (2, 3, 0, 1, 2)]
    assert not len(aded(made, 9, [7, 8]).grow(8, 5, 9))


def test_the_published_search_brings_its_drafter() -> None:
    assert [one.name for one in completed([], "aded")] == ["trigram"]
    given = [TrigramDrafter()]
    assert completed(given, "aded") == given


MUTATED = """
import random
import numpy as np
from tests.drafters.test_trigram import VOCAB, TrigramIndex, aded, arrays, drafter, index
from hf_specplug.drafters.contract import Context, Frontier
rng = random.Random(0)
for round_ in range(120):
    whole = arrays(index([rng.randrange(VOCAB + 1) for _ in range(rng.randint(9, 200))]))
    for name, array in whole.items():
        most = np.iinfo(array.dtype).max
        for _ in range(rng.randint(0, 8) if len(array) else 0):
            extreme = [0, 1, most, most - 1, len(array), VOCAB, rng.randrange(300)]
            array[rng.randrange(len(array))] = rng.choice(extreme)
        if round_ % 5 == 0:
            array[:] = np.frombuffer(rng.randbytes(array.nbytes), array.dtype)
    shard = TrigramIndex(whole, VOCAB)
    made = drafter([shard, shard])
    made.begin(Context([rng.randrange(VOCAB) for _ in range(20)], VOCAB))
    pool = np.zeros((12, 12), np.int32)
    for node in range(12):
        pool[node, :3] = rng.randrange(VOCAB), max(node - 1, 0), node
    rows = made.expand(Frontier(np.arange(12, dtype=np.int32), pool, 0))
    assert ((rows[:, 1] >= 0) & (rows[:, 1] < VOCAB)).all()
    assert ((rows[:, 2] >= 0) & (rows[:, 2] < len(made.priors))).all()
    assert len({(node, token) for node, token, _ in rows.tolist()}) == len(rows)
    if round_ < 10:
        tree = aded(made, VOCAB, [rng.randrange(VOCAB) for _ in range(20)] + [0]).grow(0, 20, 5)
        assert ((tree.tokens >= 0) & (tree.tokens < VOCAB)).all()
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"])
def test_damaged_arrays_lead_nowhere(variable: str, tmp_path: Path) -> None:
    """With every index checked, over arrays that hold anything."""
    assert_harmless(MUTATED, variable, tmp_path)


def test_a_hostile_store_with_right_checksums_changes_no_output(tmp_path: Path) -> None:
    model = make_model("llama")
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    store = store_of(tmp_path / "answer", new_tokens(expected, 60), kind="trigram")
    opened = Datastore(store)
    rng = np.random.default_rng(0)
    noise = {
        name: np.frombuffer(rng.bytes(array.nbytes), array.dtype)
        for name, array in arrays(opened.shards[0]).items()
    }
    state, (shard,) = opened.manifest, opened.manifest.shards
    written = write_shard(store, 7, noise, shard.documents, shard.tokens)
    manifest.save(store, state.with_shards((written,), {}))
    Datastore(store).check()
    with pytest.raises(StoreError):
        Datastore(store).check(deep=True)
    plug = SpecPlug(drafters=[TrigramDrafter([store])], nodes=16)
    output = model.generate(**inputs, **GREEDY, custom_generate=plug)
    assert output.tolist() == expected.tolist()
    assert not plug.stats.dropped
