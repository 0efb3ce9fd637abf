"""STAND: its table against plain-Python twins, its memory, its state."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.contract import TOP_K, Context, Frontier, Step, TopK
from hf_specplug.drafters.stand import SUCCESSORS, StandDrafter
from hf_specplug.errors import OptionError, StateError
from hf_specplug.kernels import successors
from tests.helpers import twins
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make, prompt

VOCAB = 40


def table(rows: int = 1, width: int = 3) -> tuple[np.ndarray, ...]:
    """Free keys, stamps, visits, ids and probs."""
    return (
        np.zeros(rows, np.uint64),
        np.zeros(rows, np.int32),
        np.zeros(rows, np.int32),
        np.full((rows, width), -1, np.int32),
        np.zeros((rows, width), np.float32),
    )


def row_of(ids: np.ndarray, probs: np.ndarray, row: int = 0) -> list[tuple[int, float]]:
    return [
        (int(token), float(weight))
        for token, weight in zip(ids[row], probs[row], strict=True)
        if token >= 0
    ]


PROBS = st.sampled_from([0.0, 0.1, 0.25, 0.25, 0.3, 0.5, 1.0, float("nan")])
SHOWN = st.lists(st.tuples(st.integers(-1, 9), PROBS), max_size=6, unique_by=lambda pair: pair[0])


@given(st.lists(SHOWN, max_size=6))
def test_mean_is_the_running_mean(shown: list[list[tuple[int, float]]]) -> None:
    _, _, visits, ids, probs = table()
    known: list[tuple[int, float]] = []
    for k, new in enumerate(shown):
        tokens = np.array([token for token, _ in new], np.int32)
        successors.mean(
            visits, ids, probs, 0, tokens, np.array([prob for _, prob in new], np.float32)
        )
        known = twins.averaged(known, new, k, 3)
        found = row_of(ids, probs)
        assert [weight for _, weight in found] == [weight for _, weight in known]
        assert sorted(found) == sorted(known)  # rounding may make equals of two, in either order
        assert visits[0] == k + 1


@given(st.lists(st.integers(0, 5), max_size=30), st.sampled_from([0.5, 0.9, 1.0]))
def test_decayed_counts(tokens: list[int], decay: float) -> None:
    _, _, visits, ids, probs = table()
    known: list[tuple[int, float]] = []
    for token in tokens:
        successors.count(visits, ids, probs, 0, token, decay)
        known = twins.counted(known, token, decay, 3)
        assert row_of(ids, probs) == known
    assert visits[0] == len(tokens)


@given(st.lists(st.integers(0, 60), max_size=120))
def test_a_full_set_loses_its_oldest_row(numbers: list[int]) -> None:
    """Two sets of eight rows, against two dictionaries in the order of use."""
    arrays = table(2 * successors.WAYS)
    keys, _, visits, _, _ = arrays
    twin = twins.Sets(2, successors.WAYS)
    for stamp, number in enumerate(numbers, start=1):
        key = int(successors.longer(np.uint64(successors.EMPTY_GRAM), number))
        row = successors.claim(*arrays, np.uint64(key), stamp)
        assert visits[row] == twin.claim(key)
        visits[row] += 1
    for key, count in twin.counts().items():
        assert visits[successors.find(keys, np.uint64(key))] == count
    assert np.count_nonzero(keys) == len(twin.counts())


def test_keys_tell_n_grams_apart() -> None:
    found = set()
    for first in range(-1, 60):
        one = np.uint64(successors.longer(np.uint64(successors.EMPTY_GRAM), first))
        found |= {int(one), *(successors.longer(one, second) for second in range(-1, 60))}
    assert len(found) == 61 + 61**2
    assert 0 not in found


def step_of(
    tokens: list[int],
    rows: list[list[int]],
    emitted: list[int],
    before: int = 0,
    parents: list[int] | None = None,
) -> Step:
    ids = np.array(rows, np.int32).reshape(-1, TOP_K)
    probs = np.tile(np.linspace(0.3, 0.02, TOP_K, dtype=np.float32), (len(ids), 1))
    topk = TopK(ids, probs)
    if parents is None:
        return Step.of_text(np.array(tokens, np.int32), before, [], emitted, topk)
    given = [np.array(values, np.int32) for values in (tokens, parents)]
    unnamed = np.zeros(len(tokens), np.uint16)
    return Step(*given, before, unnamed, np.zeros(1, np.int32), np.array(emitted, np.int32), topk)


TOKENS = st.integers(-1, 3)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], int, list[list[int]]]:
    """A prompt, how many of its tokens have rows, and what is emitted step by step."""
    text = draw(st.lists(TOKENS, min_size=1, max_size=12))
    return (
        text,
        draw(st.integers(0, len(text))),
        draw(st.lists(st.lists(TOKENS, min_size=1, max_size=3), min_size=1, max_size=5)),
    )


@given(requests(), st.lists(st.integers(0, 3), max_size=6), st.integers(0, 2**32 - 1))
def test_learns_along_all_paths_and_looks_up_the_longest(
    request: tuple[list[int], int, list[list[int]]], path: list[int], seed: int
) -> None:
    text, seen, steps = request
    rng = np.random.default_rng(seed)

    def rows(count: int) -> list[list[int]]:
        return [rng.permutation(VOCAB)[:TOP_K].tolist() for _ in range(count)]

    drafter, context = StandDrafter(1 << 10), Context(text, VOCAB)
    drafter.begin(context)
    twin = twins.Grams(SUCCESSORS)
    shown = rows(seen)
    first, *later = steps
    context.append(first[:1])
    step = step_of(text[len(text) - seen :], shown, first[:1], len(text) - seen)
    drafter.observe(step)
    assert step.topk is not None
    for i, row in enumerate(shown):
        twin.learn(text[: len(text) - seen + i + 1], row, step.topk.probs[i].tolist())
    text = [*text, first[0]]
    for emitted in later:
        shown = rows(5)  # the root and four nodes
        parents = [-1, *(int(rng.integers(0, i)) for i in range(1, 5))]
        tokens = [text[-1], *rng.integers(0, 4, 4).tolist()]
        step = step_of(tokens, shown, emitted, len(text) - 1, parents)
        context.append(emitted)
        drafter.observe(step)
        assert step.topk is not None
        paths = [text]
        for parent, token in zip(parents[1:], tokens[1:], strict=True):
            paths.append([*paths[parent], token])
        for i, before in enumerate(paths):
            twin.learn(before, shown[i], step.topk.probs[i].tolist())
        text = [*text, *emitted]
    pool = np.zeros((len(path) + 1, 3), np.int32)
    for i, token in enumerate(path):
        pool[i + 1] = token, i, i + 1
    found = drafter.expand(Frontier(np.arange(len(pool), dtype=np.int32), pool, text[-1]))
    for node in range(len(pool)):
        expected = twin.named([*text, *path[:node]])
        assert [(t, b) for n, t, b in found.tolist() if n == node] == expected
        tokens, _ = drafter.distribution(pool, node)
        assert tokens.tolist() == [token for token, _ in expected]


def taught(letters: int = VOCAB, length: int = 200) -> tuple[StandDrafter, Context]:
    """A drafter that was shown a random prompt."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, letters, length).tolist()
    drafter, context = StandDrafter(1 << 12), Context(text, VOCAB)
    drafter.begin(context)
    context.append([1])
    rows = [rng.permutation(letters)[:TOP_K].tolist() for _ in text]
    drafter.observe(step_of(text, rows, [1]))
    return drafter, context


def nbytes(drafter: StandDrafter) -> int:
    return sum(array.nbytes for array in vars(drafter.table).values() if hasattr(array, "nbytes"))


def known_in(drafter: StandDrafter, gram: list[int]) -> bool:
    drafter.begin(Context(gram, 1 << 20))
    pool = np.zeros((1, 3), np.int32)
    return len(drafter.expand(Frontier(np.zeros(1, np.int32), pool, gram[-1]))) == TOP_K


def test_memory_is_bounded_and_keeps_what_is_recent() -> None:
    rng = np.random.default_rng(0)
    drafter, context = StandDrafter(256), Context([0], 1 << 20)
    drafter.begin(context)
    for _ in range(40):
        text = rng.integers(0, 1 << 20, 50).tolist()
        drafter.begin(Context(text, 1 << 20))
        drafter.observe(step_of(text, [[*range(TOP_K)]] * 49 + [[-1] * TOP_K], []))
    state = drafter.state_dict()
    assert len(state["keys"]) == 256
    assert nbytes(drafter) == 96 * 256
    recent = [known_in(drafter, text[end - 4 : end]) for end in range(20, 49)]
    assert sum(recent) > 0.9 * len(recent)


def test_a_table_grows_before_it_drops_rows() -> None:
    """The default table begins small, and ends as one that had all of its rows at first."""
    rng = np.random.default_rng(0)
    growing, full = StandDrafter(), StandDrafter()
    context = Context([0], 1 << 20)
    growing.begin(context)
    full.begin(context)
    full.table._allocate(1 << 18)
    assert nbytes(growing) < nbytes(full) / 50
    for _ in range(20):
        text = rng.integers(0, 1 << 20, 200).tolist()
        step = step_of(text, [[*range(TOP_K)]] * 200, [])
        for drafter in (growing, full):
            drafter.begin(Context(text, 1 << 20))
            drafter.observe(step)
    one, two = set(growing.table.keys.tolist()), set(full.table.keys.tolist())
    assert len(two) > 10_000
    assert one <= two
    assert len(one) > 0.999 * len(two)
    assert len(growing.table.keys) < 1 << 18


def test_the_clock_goes_on_for_ever() -> None:
    drafter, context = taught()
    twin, other = copy.deepcopy((drafter, context))
    twin.table.stamps += np.int32(2**31 - 1 - twin.table.clock)
    twin.table.clock = 2**31 - 1
    for one, text in ((drafter, context), (twin, other)):
        text.append([5, 6])
        one.observe(step_of([1, 5, 0], [[*range(TOP_K)]] * 3, [5, 6], 200, [-1, 0, 1]))
    assert twin.table.clock <= drafter.table.clock  # n-grams that came up again left gaps
    one, two = drafter.state_dict(), twin.state_dict()
    assert all((one[key] == two[key]).all() for key in one)


def test_nothing_is_learned_without_rows_and_a_new_vocabulary_clears() -> None:
    drafter, context = taught()
    before = drafter.state_dict()
    context.append([2])
    drafter.observe(Step.of_text(np.ones(1, np.int32), 200, [], [2], None))
    assert (drafter.state_dict()["keys"] == before["keys"]).all()
    drafter.begin(Context([1], VOCAB))
    assert len(drafter.state_dict()["keys"]) == len(before["keys"])
    drafter.begin(Context([1], VOCAB + 1))
    assert len(drafter.state_dict()["keys"]) == 0


@pytest.mark.parametrize("rows", [0, 4, 12, -8])
def test_rows_are_a_power_of_two(rows: int) -> None:
    with pytest.raises(OptionError, match="power of two"):
        StandDrafter(rows)


def test_state_comes_back_in_any_size() -> None:
    drafter, context = taught()
    state = drafter.state_dict()
    assert len(state["keys"]) == np.count_nonzero(drafter.table.keys)  # nothing but what is used
    same = StandDrafter(1 << 12)
    same.load_state_dict(state)
    for one in (drafter, same):  # and goes on in the same way
        text = copy.deepcopy(context)
        one.begin(text)
        text.append([3])
        one.observe(step_of([1], [[*range(TOP_K)]], [3], len(text) - 1))
    again = same.state_dict()
    assert all((again[key] == array).all() for key, array in drafter.state_dict().items())
    small = StandDrafter(32)
    small.load_state_dict(state)
    kept = small.state_dict()["keys"]
    assert len(kept) == 32
    assert set(kept.tolist()) <= set(state["keys"].tolist())
    assert state["keys"][-1] in kept


def changed(state: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {**state, key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "has the arrays"),
        (lambda s: changed(s, "more", s["keys"]), "has the arrays"),
        (lambda s: changed(s, "keys", s["keys"].astype(np.int64)), "keys must be uint64"),
        (lambda s: changed(s, "keys", np.uint64(3).reshape(())), "keys must be"),
        (lambda s: changed(s, "keys", s["keys"] * np.uint64(0)), "distinct and not 0"),
        (lambda s: changed(s, "keys", s["keys"] * np.uint64(0) + np.uint64(1)), "distinct"),
        (lambda s: changed(s, "visits", s["visits"][1:]), "visits must be int32"),
        (lambda s: changed(s, "visits", s["visits"] * np.int32(0)), "been visited"),
        (lambda s: changed(s, "ids", s["ids"][:, :TOP_K]), r"ids must be int32\[\d+, 10\]"),
        (lambda s: changed(s, "ids", s["ids"] + np.int32(1)), "ids must lie in"),
        (lambda s: changed(s, "ids", s["ids"] - np.int32(2)), "ids must lie in"),
        (lambda s: changed(s, "ids", s["ids"] * np.int32(0)), "distinct"),
        (lambda s: changed(s, "ids", np.full_like(s["ids"], -1)), "no weight"),
        (lambda s: changed(s, "weights", s["weights"] * np.float32(np.nan)), "weights must lie"),
        (lambda s: changed(s, "weights", -s["weights"]), "weights must lie"),
        (lambda s: changed(s, "weights", s["weights"][:, ::-1]), "descending"),
        (lambda s: changed(s, "vocab_size", np.array([-1])), "vocabulary of -1"),
        (lambda s: changed(s, "vocab_size", np.array([1.5])), "vocab_size must be int64"),
    ],
)
def test_hostile_states(change: Any, message: str) -> None:
    drafter, _ = taught()
    before = drafter.state_dict()
    before["ids"][0, :TOP_K] = VOCAB - 1 - np.arange(TOP_K)
    with pytest.raises(StateError, match=message):
        drafter.load_state_dict(change(before))
    assert (drafter.state_dict()["keys"] == before["keys"]).all()


@pytest.mark.parametrize("do_sample", [False, True])
def test_what_one_sample_taught_serves_the_next(do_sample: bool) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 60, "do_sample": do_sample, "top_k": 5}
    drafter = StandDrafter(1 << 14)
    accepted = []
    for _ in range(2):
        output, _, plug = plugged(model, inputs, drafter, nodes=16, **settings)
        assert output.tolist() == plain(model, inputs, **settings)[0].tolist()
        accepted.append(plug.stats.accepted)
    assert accepted[1] > accepted[0]
    assert accepted[1] > 25
