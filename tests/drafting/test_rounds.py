"""The search in one kernel: the trees of a search that asks each drafter from Python."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_specplug.datastore.opening import open_all
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.context import ContextDrafter
from hf_specplug.drafters.contract import NO_NOISE, TOP_K, Context, Drafter, Frontier, Step, TopK
from hf_specplug.drafters.recycling import RecyclingDrafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import give
from hf_specplug.drafting.asked import in_kernel
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.kernels.tables import ALL
from hf_specplug.tree import DraftTree
from tests.helpers import search_twins
from tests.helpers.stores import make, texts

VOCAB = 12


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Datastore]]:
    """No stores; one of each kind that the kernel reads; and such with several shards."""
    folder = tmp_path_factory.mktemp("stores")
    corpus = texts(folder / "texts")
    opened: dict[str, list[Datastore]] = {"none": []}
    for name, tokens in (("one", 1 << 20), ("many", 900)):
        kinds = ("suffix", "trigram", "ngram")
        paths = [folder / f"{name}.{kind}" for kind in kinds]
        for kind, path in zip(kinds, paths, strict=True):
            make(path, corpus, letters=VOCAB, kind=kind, shard_tokens=tokens)
        opened[name] = open_all(paths)
    return opened


class Own(Drafter):
    """Proposes the next token id."""

    name = "own"

    def __init__(self) -> None:
        self.priors = np.array([0.4], np.float32)

    def expand(self, frontier: Frontier) -> np.ndarray:
        tokens = [frontier.root, *frontier.pool[1:, 0].tolist()]
        rows = [(node, (tokens[node] + 1) % VOCAB, 0) for node in frontier.nodes.tolist()]
        return np.array(rows, np.int32).reshape(-1, 3)


def fail(drafter: Drafter, error: Exception) -> None:
    raise error


def likely(rng: np.random.Generator, rows: int) -> TopK:
    ids = np.array([rng.permutation(VOCAB)[:TOP_K] for _ in range(rows)], np.int32)
    probs = -np.sort(-rng.dirichlet(np.full(TOP_K, 0.3), rows), axis=1)
    return TopK(ids.reshape(-1, TOP_K), probs.astype(np.float32).reshape(-1, TOP_K))


def assert_equal(one: DraftTree, other: DraftTree) -> None:
    for name in ("tokens", "parents", "probs", "sources"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist()


@given(
    names=st.lists(st.sampled_from(ALL), min_size=1, unique=True),
    own=st.booleans(),
    known=st.booleans(),
    chain=st.booleans(),
    limit=st.sampled_from([1, 5, 15, 80]),
    suppressed=st.lists(st.integers(0, VOCAB - 1), max_size=2),
    given_stores=st.sampled_from(["none", "one", "many"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_all_rounds_in_a_kernel_grow_the_same_tree(
    stores: dict[str, list[Datastore]],
    names: list[str],
    own: bool,
    known: bool,
    chain: bool,
    limit: int,
    suppressed: list[int],
    given_stores: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    drafters = create(names)
    give(stores[given_stores], drafters)
    drafters.sort(key=in_kernel)  # drafters without a kernel are asked first
    drafters = [Own()] * own + drafters
    order = [drafter.name for drafter in drafters]
    context = Context(rng.integers(0, VOCAB, 60), VOCAB, suppressed=suppressed)
    searches = [
        TreeSearch(drafters, Mixer(order), VOCAB, fail),
        search_twins.OneByOne(copy.deepcopy(drafters), Mixer(order), VOCAB, fail),
    ]
    for search in searches:
        search.begin(context)
    for _ in range(4):
        noise = (rng.random((3, VOCAB)), int(rng.integers(3))) if known else NO_NOISE
        ask = rng.random(len(drafters)) < 0.8
        trees = [
            search.grow(context.last, limit, 6, chain, ask.tolist(), noise) for search in searches
        ]
        assert_equal(*trees)
        topk, emitted = likely(rng, len(trees[0]) + 1), [int(rng.integers(VOCAB))]
        root, before = context.last, len(context) - 1
        context.append(emitted)
        step = Step.of_tree(root, trees[0], before, [0], emitted, topk)
        for search in searches:
            search.learn(step.emitted)
            search.observe(step)


class Mumbling(ContextDrafter):
    """A subclass may propose something else."""

    def expand(self, frontier: Frontier) -> np.ndarray:
        return np.array([[node, 3, 0] for node in frontier.nodes.tolist()], np.int32)


def test_a_subclass_is_asked_itself() -> None:
    search = TreeSearch([Mumbling()], Mixer(["context"]), VOCAB, fail)
    search.begin(Context([1, 2, 1, 2], VOCAB))
    assert set(search.grow(2, 4, 4).tokens.tolist()) == {3}


def test_a_drafter_that_the_kernel_refuses_is_dropped() -> None:
    """A matrix that names a token outside the vocabulary, as after a wrong `begin`."""
    dropped = []
    recycling, context = RecyclingDrafter(), ContextDrafter()
    search = TreeSearch(
        [recycling, context],
        Mixer(["recycling", "context"]),
        VOCAB,
        lambda drafter, error: dropped.append((drafter, str(error))),
    )
    search.begin(Context([1, 2, 3, 1, 2], VOCAB))
    recycling.ids[2, 0], recycling.probs[2, 0] = VOCAB, 60000
    tree = search.grow(2, 4, 4)
    assert tree.tokens.tolist()[:1] == [3]
    assert set(tree.sources.tolist()) == {2}
    assert [(drafter.name, "outside the vocabulary" in text) for drafter, text in dropped] == [
        ("recycling", True)
    ]
    assert search.drafters == [context]


def test_the_time_of_a_kernel_is_shared_by_its_drafters() -> None:
    search = TreeSearch(create(["context", "recycling"]), Mixer(["context", "recycling"]), 12, fail)
    search.begin(Context([1, 2, 1, 2], VOCAB))
    search.grow(2, 4, 4)
    assert search.seconds[0] == search.seconds[1] > 0
    search.grow(2, 4, 4, ask=[True, False])
    assert search.seconds[1] == 0


def test_drafters_catch_up_before_they_are_asked() -> None:
    """Tokens emitted while nobody was asked are shown together, ahead of the next draft."""
    rng = np.random.default_rng(0)
    names = ["context", "frequency", "sparse"]
    text, more = rng.integers(0, 5, 40), rng.integers(0, 5, 9).tolist()
    contexts = [Context(text, VOCAB) for _ in range(2)]
    searches = [TreeSearch(create(names), Mixer(names), VOCAB, fail) for _ in contexts]
    for search, context in zip(searches, contexts, strict=True):
        search.begin(context)
    at_once, late = searches
    for token in more:
        for context in contexts:
            context.append([token])
        before, root = len(contexts[0]) - 2, [int(contexts[0].tokens[-2])]
        at_once.observe(Step.of_text(np.array(root, np.int32), before, [0], [token], None))
        late.postpone(1)
        assert not len(late.grow(token, 8, 4, ask=[False] * 3))
    assert_equal(at_once.grow(more[-1], 8, 4), late.grow(more[-1], 8, 4))
    states = [[drafter.state_dict() for drafter in search.drafters] for search in searches]
    for one, other in zip(*states, strict=True):
        for key in one:
            np.testing.assert_allclose(one[key], other[key])


@pytest.mark.parametrize(
    ("given_stores", "known"), [("none", False), ("one", True), ("many", False)]
)
def test_the_kernel_reads_stores_of_one_shard(
    stores: dict[str, list[Datastore]], given_stores: str, known: bool
) -> None:
    drafters = create(["rest", "trigram", "phrases"])
    give(stores[given_stores], drafters)
    rest, trigram, phrases = (in_kernel(drafter) for drafter in drafters)
    assert rest is known
    assert trigram is (given_stores != "many")  # it drafts from texts without a store
    assert phrases  # its automaton is one, whatever the stores
