"""Each published form drafts, node for node, what plain Python drafts from the paper's text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_specplug.datastore.kinds.contract import token_dtype
from hf_specplug.datastore.kinds.dense import DenseIndex
from hf_specplug.datastore.kinds.phrases import NgramIndex
from hf_specplug.datastore.kinds.suffix import SuffixIndex
from hf_specplug.datastore.kinds.trigram import TrigramIndex
from hf_specplug.drafters.contract import TOP_K, Context, Drafter, Frontier, Int32, Step, TopK
from hf_specplug.drafters.dense import DenseDrafter
from hf_specplug.drafters.phrases import PhrasesDrafter
from hf_specplug.drafters.recycling import RecyclingDrafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.rest import RestDrafter
from hf_specplug.drafters.stand import StandDrafter
from hf_specplug.drafters.trigram import TrigramDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.published import PUBLISHED
from hf_specplug.published.aded import Aded
from hf_specplug.published.hierarchy import Hierarchy
from hf_specplug.published.stand import Stand
from hf_specplug.published.token_recycling import TokenRecycling
from hf_specplug.tree import DraftTree
from tests.helpers import paper_twins
from tests.helpers.paper_twins import Path

VOCAB = 5
NONE = np.empty(0, np.int32)
DOCUMENTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), max_size=4)
TEXT = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=40)
LIMIT, DEPTH = st.integers(1, 40), st.integers(1, 12)
SEED = st.integers(0, 1 << 32).map(np.random.default_rng)


class Stored:
    """A datastore whose shards are in memory."""

    def __init__(self, kind: str, vocab: int, shards: list[Any]) -> None:
        made_of = {"model": {"name": "a model", "hash": ""}}
        self.manifest: Any = SimpleNamespace(kind=kind, vocab_size=vocab, settings=made_of)
        self.shards = shards


def joined(documents: Any, vocab: int = VOCAB) -> Any:
    """The text of a shard: `vocab` stands after each document."""
    tokens = [token for document in documents for token in [*document, vocab]]
    return np.array(tokens, token_dtype(vocab))


def indexed(kind: Any, documents: Any, vocab: int = VOCAB) -> Any:
    return kind(kind.build(joined(documents, vocab), vocab), vocab)


def reading(drafter: Any, *stores: Stored) -> Any:
    for store in stores:
        drafter.stores.append(store)
        drafter._opened(store)
    return drafter


def begun(name: str, drafters: list[Drafter], text: Any, vocab: int = VOCAB) -> Any:
    """The search of a paper, at the end of a text."""
    names = [drafter.name for drafter in drafters]
    search = PUBLISHED[name](drafters, Mixer(names), vocab, fail)
    search.begin(Context(text, vocab))
    return search


def fail(_: Drafter, error: Exception) -> None:
    raise error


def paths(tree: DraftTree) -> list[Path]:
    found: list[Path] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found)
    assert ((tree.probs > 0) & (tree.probs <= 1)).all()
    return found


@settings(deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=2), TEXT, LIMIT, DEPTH)
def test_rest(shards: list[Any], text: list[int], limit: int, depth: int) -> None:
    made = [indexed(SuffixIndex, documents) for documents in shards]
    drafter = reading(RestDrafter(), Stored("suffix", VOCAB, made))
    tree = begun("rest", [drafter], text).grow(text[-1], limit, depth)
    known = [(documents, VOCAB) for documents in shards if documents]
    assert paths(tree) == paper_twins.rest(known, text, limit, depth)


def test_rest_counts_long_matches_and_stops_at_64_nodes() -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, VOCAB, 3000).tolist(), [0, 1] * 6000]
    drafter = reading(RestDrafter(), Stored("suffix", VOCAB, [indexed(SuffixIndex, documents)]))
    for text in (documents[0][40:70], [3, 3, *documents[0][99:104]], [2, 3], [0, 1] * 5):
        tree = begun("rest", [drafter], text).grow(text[-1], 200, 20)
        assert paths(tree) == paper_twins.rest([(documents, VOCAB)], text, 200, 20)
        assert len(tree) <= 64


@settings(deadline=None, max_examples=40)
@given(SEED, st.integers(2, 150), st.integers(1, 2), LIMIT, DEPTH)
def test_dresd(rng: Any, size: int, shards: int, limit: int, depth: int) -> None:
    dims, made, stored = 6, [], []
    transform = np.eye(dims + 1, dims, dtype=np.float32)
    for _ in range(shards):
        tokens = rng.integers(0, VOCAB, size)
        tokens[rng.random(size) < 0.05] = VOCAB
        vectors = rng.normal(size=(size, dims)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        part = DenseIndex(DenseIndex.from_vectors(tokens, vectors, transform, VOCAB), VOCAB)
        index = DenseIndex(DenseIndex.join([part], VOCAB, {"index": "Flat"}), VOCAB)
        made.append(index)
        exact = np.concatenate(list(index.blocks()))  # as they are stored, in half precision
        for place, vector in enumerate(exact):
            rest = tokens[place + 1 :].tolist()
            end = rest.index(VOCAB) if VOCAB in rest else len(rest)
            stored.append((vector.astype(np.float64), rest[:end]))
    drafter = reading(DenseDrafter(), Stored("dense", VOCAB, made))
    search = begun("dresd", [drafter], [0, 1])
    assert not len(search.grow(1, limit, depth))  # no state is known
    state = rng.normal(size=dims).astype(np.float32)
    root = int(rng.integers(0, VOCAB))
    search.observe(Step.of_text(NONE, 0, [], [root], None, state))
    expected = paper_twins.dresd(stored, state.astype(np.float64), root, limit, depth)
    assert paths(search.grow(root, limit, depth)) == expected


@settings(deadline=None)
@given(DOCUMENTS, DOCUMENTS, TEXT, LIMIT)
def test_hierarchy(said: list[Any], corpus: list[Any], text: list[int], limit: int) -> None:
    phrases = reading(PhrasesDrafter(), Stored("ngram", VOCAB, [indexed(NgramIndex, said)]))
    rest = reading(RestDrafter(), Stored("suffix", VOCAB, [indexed(SuffixIndex, corpus)]))
    search: Hierarchy = begun("hierarchy", [*create(["context"]), phrases, rest], text)
    expected, asked = paper_twins.hierarchy(text, said, (corpus, VOCAB), limit)
    assert paths(search.grow(text[-1], limit, 9)) == expected
    assert search.asked == [int(level < asked) for level in range(3)]


def test_hierarchy_follows_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the steps of an answer; a level is not looked up if it is not asked."""
    rng = np.random.default_rng(1)
    text = rng.integers(0, 3, 60).tolist()
    context = Context(text[:8], VOCAB)
    phrases, rest = reading(PhrasesDrafter()), reading(RestDrafter())
    search: Hierarchy = begun("hierarchy", [*create(["context"]), phrases, rest], [0])
    search.begin(context)
    for place in range(8, 60, 2):
        expected, asked = paper_twins.hierarchy(text[:place], [], ([], VOCAB), 28)
        search.asked = [0, 0, 0]
        assert paths(search.grow(text[place - 1], 28, 9)) == expected
        assert search.asked == [int(level < asked) for level in range(3)]
        for level, seconds in enumerate(search.seconds):
            assert (seconds > 0) == (level < asked)
        context.append(text[place : place + 2])
    assert asked == 1  # the text alone fills the draft


@settings(deadline=None, max_examples=30)
@given(SEED, DEPTH)
def test_token_recycling(rng: Any, depth: int) -> None:
    ids = np.stack([rng.permutation(12)[:8] for _ in range(12)]).astype(np.int32)
    ids[rng.random(12) < 0.2, 3:] = -1
    drafter = RecyclingDrafter()
    drafter.load_state_dict({"ids": ids, "probs": (ids >= 0).astype(np.uint16)})
    search = begun("token-recycling", [drafter], [1, 2], 12)
    shape = np.stack(TokenRecycling.shape(), axis=1).tolist()
    rows = {token: [one for one in row if one >= 0] for token, row in enumerate(ids.tolist())}
    assert paths(search.grow(2, 16, depth)) == paper_twins.token_recycling(shape, rows, 2, depth)


@settings(deadline=None, max_examples=30)
@given(SEED, st.integers(1, 60), DEPTH)
def test_stand(rng: Any, size: int, depth: int) -> None:
    vocab, drafter = 12, StandDrafter(1 << 10)
    tokens = rng.integers(0, 3, size + 1).tolist()
    context = Context(tokens[:size], vocab)
    search: Stand = PUBLISHED["stand"]([drafter], Mixer(["stand"]), vocab, fail)  # type: ignore[assignment]
    search.begin(context)
    context.append(tokens[size:])
    ids = np.stack([rng.permutation(vocab)[:TOP_K] for _ in range(size)]).astype(np.int32)
    probs = -np.sort(-rng.random((size, TOP_K)).astype(np.float32) / TOP_K, axis=1)
    search.observe(
        Step.of_text(np.array(tokens[:size], "i4"), 0, [], tokens[size:], TopK(ids, probs))
    )
    observed = [
        (tokens[: i + 1], dict(zip(ids[i].tolist(), probs[i].tolist(), strict=True)))
        for i in range(size)
    ]
    shape = np.stack(Stand.shape(), axis=1).tolist()
    expected = paper_twins.stand(shape, observed, tokens, depth)
    assert paths(search.grow(tokens[-1], 16, depth)) == expected


class Pairs(Drafter):
    """Proposes some successors of each token, with a probability of its own at each depth."""

    name: ClassVar[str] = "pairs"

    def __init__(self, rng: Any, share: float) -> None:
        self.heads: set[int] | None = None  # the only first tokens, if given
        self.known = rng.random((VOCAB, VOCAB)) < share
        self.priors = rng.uniform(0.02, 0.6, 3 * VOCAB**2).astype(np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        rows = []
        for node in frontier.nodes.tolist():
            last, depth = (frontier.root, 0) if not node else frontier.pool[node, [0, 2]].tolist()
            follow = np.flatnonzero(self.known[last]).tolist()
            if self.heads is not None and not node:
                follow = [token for token in follow if token in self.heads]
            rows += [(node, token, (depth * VOCAB + last) * VOCAB + token) for token in follow]
        return np.array(rows, np.int32).reshape(-1, 3)


class Derived(Pairs):
    """The same, from what the target finds likely."""

    name: ClassVar[str] = "derived"
    needs: ClassVar[frozenset[str]] = frozenset({"topk"})


class Searching(Pairs):
    """The same, from datastores that are searched by the target's hidden states."""

    name: ClassVar[str] = "searching"
    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    kinds: ClassVar[frozenset[str]] = frozenset({"dense"})


def scored(drafters: list[Drafter], asked: list[bool]) -> dict[Path, float]:
    """Every path of at most three tokens, with its probability."""
    search = TreeSearch(drafters, Mixer([each.name for each in drafters]), VOCAB, fail)
    search.begin(Context([0], VOCAB))
    tree = search.grow(0, 400, 3, ask=asked)
    return dict(zip(paths(tree), tree.path_probs().tolist(), strict=True))


@settings(deadline=None)
@given(SEED, st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.0, 0.5, 1.0]), LIMIT)
def test_rasd(rng: Any, generated: float, retrieved: float, limit: int) -> None:
    drafters: list[Drafter] = [Searching(rng, retrieved), Derived(rng, generated)]
    drafters.append(Pairs(rng, retrieved))
    derived = scored(drafters, [False, True, False])
    everything = set(scored(drafters, [True, False, True]))
    heads = {path[0] for path in derived}
    tree = begun("rasd", drafters, [0]).grow(0, limit, 3)
    for each in (drafters[0], drafters[2]):
        each.heads = heads or None  # type: ignore[attr-defined]
    left = scored(drafters, [True, False, True])
    assert set(paths(tree)) == paper_twins.rasd(derived, everything, left, heads, limit)
    assert len(tree) == min(limit, len({*derived, *left}))  # what is pruned frees no node
    if not heads:  # a distribution that is not there prunes nothing
        assert len(left) == len(everything)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 300), max_size=2), SEED, LIMIT, st.integers(1, 6))
def test_aded(sizes: list[int], rng: Any, limit: int, depth: int) -> None:
    """Over several steps: what is recent is raised in each."""
    vocab = 8
    corpora = [(rng.zipf(1.5, size) % vocab).tolist() for size in sizes]
    text = (rng.zipf(1.5, 40) % vocab).tolist()
    shards = [indexed(TrigramIndex, [tokens], vocab) for tokens in corpora]
    drafter = reading(TrigramDrafter(), Stored("trigram", vocab, shards))
    context = Context(text[:2], vocab)
    search: Aded = begun("aded", [drafter], [0], vocab)
    search.begin(context)
    twin = paper_twins.Aded(corpora)
    for place in range(2, 40, 6):
        expected = twin.draft(text[:place], limit, depth)
        assert paths(search.grow(text[place - 1], limit, depth)) == expected
        context.append(text[place : place + 6])
