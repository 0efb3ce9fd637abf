"""What every registered drafter must keep to; a new one is tested here by being registered."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import (
    MAX_CHILDREN,
    TOP_K,
    Context,
    Drafter,
    Frontier,
    Step,
    TopK,
)
from hf_specplug.drafters.registry import create, registry
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.hf.hidden_states import signature
from tests.drafters.test_dense import States, dense_store, described
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.stores import Words, silent, stop
from tests.helpers.stores import make as make_store
from tests.helpers.zoo import make, prompt

VOCAB = 50
WIDTH = 32  # of the model's states
DRAFTERS = sorted(registry())


@cache
def store(kind: str, letters: int) -> Datastore:
    """Random text, of so many tokens that every pair of them occurs, with random states."""
    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, letters, 6 * letters**2)
    if kind == "dense":
        settings = described(signature(make("llama")))
        return Datastore(dense_store(folder, settings, States(WIDTH), [tokens.tolist()], letters))
    (folder / "text.txt").write_text("".join(chr(960 + token) for token in tokens))
    make_store(folder / "store", folder / "text.txt", letters=letters, kind=kind)
    return Datastore(folder / "store")


@cache
def passages(letters: int) -> Datastore:
    """Given passages, one that begins with each token, with their tokenizer."""
    folder, words = Path(tempfile.mkdtemp()), Words(letters)
    rng = np.random.default_rng(0)
    rows = [[first, *rng.integers(0, letters, 5).tolist()] for first in range(letters)]
    lines = [json.dumps({"text": words.decode(row)}) for row in rows]
    (folder / "given.jsonl").write_text("\n".join(lines))
    corpus = Corpus((str(folder / "given.jsonl"),))
    build(folder / "store", corpus, words, BuildOptions("phrases", given=True), stop, silent)
    return Datastore(folder / "store").with_tokenizer(words)


def new(name: str, letters: int = 12) -> Drafter:
    """A drafter that has something to draft from."""
    (drafter,) = create([name])
    if name == "passages":
        drafter.add(passages(letters))
    for kind in sorted(drafter.kinds):
        drafter.add(store(kind, letters))
    return drafter


def fed(name: str, seed: int = 0) -> tuple[Drafter, Context]:
    """A drafter in the middle of a request."""
    drafter, rng = new(name), np.random.default_rng(seed)
    context = begun(drafter, rng)
    for _ in range(6):
        step(drafter, context, rng)
    return drafter, context


def begun(drafter: Drafter, rng: np.random.Generator) -> Context:
    context = Context(rng.integers(0, 12, 60), VOCAB)
    drafter.begin(context)
    return context


def step(drafter: Drafter, context: Context, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 12, 5).astype(np.int32)
    emitted = tokens[:2]
    context.append(emitted)
    rows = np.stack([rng.permutation(12)[:TOP_K] for _ in range(5)]).astype(np.int32)
    topk = TopK(rows, np.full((5, TOP_K), 0.1, np.float32))
    visited = np.array([0, 1], np.int32)
    hidden = rng.normal(size=WIDTH).astype(np.float32)
    drafter.observe(Step.of_text(tokens, len(context) - 3, visited, emitted, topk, hidden))


def grow(drafter: Drafter, context: Context, limit: int = 30) -> list[tuple[int, int]]:
    def fail(_: Drafter, error: Exception) -> None:
        raise error

    search = TreeSearch([drafter], Mixer([drafter.name]), VOCAB, fail)
    noise = np.random.default_rng(3).random((8, VOCAB)), 5
    tree = search.grow(context.last, limit, 8, noise=noise)
    return list(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True))


@pytest.mark.parametrize("name", DRAFTERS)
def test_declares_itself(name: str) -> None:
    drafter = new(name)
    assert drafter.name == name
    assert drafter.needs <= {"topk", "hidden", "noise"}
    assert drafter.priors.dtype == np.float32
    assert ((drafter.priors > 0) & (drafter.priors <= 1)).all()
    assert type(drafter).__doc__


@pytest.mark.parametrize("name", DRAFTERS)
def test_proposes_within_the_contract(name: str) -> None:
    drafter, context = fed(name)
    pool = np.zeros((4, 7), np.int32)
    pool[1:, 0] = 3, 4, 5
    for nodes in ([0],) if drafter.rounds == 1 else ([0], [1, 2], [3]):
        noise = np.random.default_rng(3).random((8, VOCAB)), 5
        rows = drafter.expand(Frontier(np.array(nodes, np.int32), pool, context.last, noise))
        assert rows.dtype == np.int32
        assert rows.shape[1] == 3
        assert set(rows[:, 0].tolist()) <= set(nodes)
        assert ((rows[:, 1] >= 0) & (rows[:, 1] < VOCAB)).all()
        assert ((rows[:, 2] >= 0) & (rows[:, 2] < len(drafter.priors))).all()
        for node in nodes:
            tokens = rows[rows[:, 0] == node, 1].tolist()
            assert len(tokens) <= MAX_CHILDREN
            assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize("name", DRAFTERS)
def test_is_deterministic_and_copies(name: str) -> None:
    drafter, context = fed(name)
    expected = grow(drafter, context)
    assert expected
    assert grow(drafter, context) == expected
    assert grow(fed(name)[0], context) == expected
    for twin in (copy.deepcopy(drafter), pickle.loads(pickle.dumps(drafter))):
        assert grow(twin, context) == expected


@pytest.mark.parametrize("name", DRAFTERS)
def test_calls_at_the_same_time(name: str) -> None:
    """Requests do not mix; what one learns, the other knows, if it is to be shared at all."""
    one = new(name)
    step(one, begun(one, np.random.default_rng(9)), np.random.default_rng(9))
    other = one.for_another_call()
    assert other is not one
    rngs = [np.random.default_rng(seed) for seed in (1, 2)]
    contexts = [begun(drafter, rng) for drafter, rng in zip((one, other), rngs, strict=True)]
    for _ in range(6):
        for drafter, context, rng in zip((one, other), contexts, rngs, strict=True):
            step(drafter, context, rng)
            grow(drafter, context)
    drafts = [grow(one, contexts[0]), grow(other, contexts[1])]
    assert [grow(one, contexts[0]), grow(other, contexts[1])] == drafts
    states = one.state_dict(), other.state_dict()
    for key, array in states[0].items():
        assert np.array_equal(array, states[1][key])
    if not states[0]:
        assert drafts == [grow(*fed(name, seed=1)), grow(*fed(name, seed=2))]
    again = Context(contexts[0].tokens, VOCAB)
    other.begin(again)  # a request leaves nothing behind but what it taught
    third = one.for_another_call()
    third.begin(again)
    assert grow(other, again) == grow(third, again)


@pytest.mark.parametrize("name", DRAFTERS)
def test_another_vocabulary_at_the_same_time(name: str) -> None:
    one, context = fed(name)
    expected, state = grow(one, context), copy.deepcopy(one.state_dict())
    one.for_another_call().begin(Context([1, 2, 3], VOCAB + 7))
    assert grow(one, context) == expected
    for key, array in one.state_dict().items():
        assert np.array_equal(array, state[key])


@pytest.mark.parametrize("name", DRAFTERS)
def test_what_is_shared_is_never_cleared(name: str) -> None:
    """Whichever drafter begins with another vocabulary: the others keep what they share."""
    first, context = fed(name)
    drafters = [first, first.for_another_call(), first.for_another_call()]
    for drafter in drafters:
        drafter.begin(Context(context.tokens, VOCAB))
    expected, state = grow(first, context), copy.deepcopy(first.state_dict())
    rng = np.random.default_rng(0)
    for changed, others in ((drafters[1], drafters[::2]), (first, drafters[2:])):
        elsewhere = Context([1, 2, 3], VOCAB + 7)
        changed.begin(elsewhere)
        step(changed, elsewhere, rng)
        assert isinstance(grow(changed, elsewhere), list)
        for other in others:
            for key, array in other.state_dict().items():
                assert np.array_equal(array, state[key])
            assert grow(other, context) == expected


@pytest.mark.parametrize("name", DRAFTERS)
def test_state_comes_back(name: str) -> None:
    drafter, context = fed(name)
    state = {key: array.copy() for key, array in drafter.state_dict().items()}
    fresh = new(name)
    fresh.load_state_dict(state)
    for one in (drafter, fresh):
        one.begin(context)
    assert grow(fresh, context) == grow(drafter, context)


@pytest.mark.parametrize("name", DRAFTERS)
def test_an_empty_context_and_no_observation(name: str) -> None:
    drafter = new(name)
    context = Context([], VOCAB)
    drafter.begin(context)
    assert isinstance(grow(drafter, context), list)
    none = np.empty(0, np.int32)
    drafter.observe(Step.of_text(none, 0, [], none, None))


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("do_sample", [False, True])
def test_is_lossless(name: str, do_sample: bool) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 60, "do_sample": do_sample, "top_k": 5}
    expected, state = plain(model, inputs, **settings)
    output, after, plug = plugged(model, inputs, [new(name, 96)], nodes=16, **settings)
    assert new_tokens(output, 60) == new_tokens(expected, 60)
    assert torch.equal(after, state)
    assert plug.stats.drafted or (name == "gumbel" and not do_sample)
    assert not plug.stats.dropped
