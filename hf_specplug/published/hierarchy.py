"""Hierarchy Drafting (Cho et al. 2025, arXiv 2502.05609) as published: databases in sequence."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from hf_specplug.datastore.kinds.phrases import NGRAM_TOKENS
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Int32, Step
from hf_specplug.drafters.phrases import PhrasesDrafter
from hf_specplug.drafters.rest import RestDrafter
from hf_specplug.kernels import continuations
from hf_specplug.kernels.trie import TRIE_PARENT, TRIE_TOKEN
from hf_specplug.published.paper import PaperSearch, merged
from hf_specplug.published.rest import trie
from hf_specplug.tree import DraftTree

GUESSES = 7
"""Chains of a draft, and chains kept per token."""

CHAIN = 4
"""Tokens of a chain: 5-grams without their first token, which is the key."""

KEY = 2
"""Last tokens of the text that are looked up in the corpus."""

Chain = tuple[int, ...]


class Recent:
    """The context-dependent database: the chains that followed each token in this text.

    Example:
        >>> recent = Recent()
        >>> recent.read(np.array([1, 2, 3, 4, 5, 1, 6, 7, 8, 9], np.int32))
        >>> recent.after(1)
        [(6, 7, 8, 9), (2, 3, 4, 5)]
    """

    def __init__(self) -> None:
        self._chains: dict[int, list[Chain]] = defaultdict(list)
        self._read = 0

    def read(self, text: Int32) -> None:
        """Take in the 5-grams that are new since the last call."""
        start = max(0, self._read - CHAIN)
        tokens = text[start:].tolist()
        for place in range(len(tokens) - CHAIN):
            key, *chain = tokens[place : place + 1 + CHAIN]
            if min(key, *chain) < 0:
                continue
            known = self._chains[key]
            if (made := tuple(chain)) in known:
                known.remove(made)
            known.insert(0, made)
            del known[GUESSES:]
        self._read = len(text)

    def after(self, token: int) -> list[Chain]:
        """The chains that followed a token, the one that was used last first."""
        return self._chains.get(token, [])


class Grams:
    """The model-dependent database: a store of kind "ngram", by first token and frequency."""

    def __init__(self, store: Datastore) -> None:
        parts, weights = [np.zeros((0, NGRAM_TOKENS), np.int64)], [np.zeros(0, np.int64)]
        for shard in store.shards:
            offsets = shard.offsets.astype(np.int64)
            whole = np.flatnonzero(np.diff(offsets) == NGRAM_TOKENS)
            parts.append(
                shard.tokens[offsets[whole, None] + np.arange(NGRAM_TOKENS)].astype(np.int64)
            )
            weights.append(shard.counts[whole].astype(np.int64))
        grams, place = np.unique(np.concatenate(parts), axis=0, return_inverse=True)
        counts = np.bincount(place.ravel(), np.concatenate(weights), len(grams))
        order = np.lexsort((-counts, grams[:, 0]))
        self._grams, self._counts = grams[order].astype(np.int32), counts[order]

    def after(self, token: int) -> list[tuple[float, Chain]]:
        """(occurrences, chain) of the most common ones after a token, descending."""
        low, high = np.searchsorted(self._grams[:, 0], [token, token + 1])
        high = min(high, low + GUESSES)
        chains = map(tuple, self._grams[low:high, 1:].tolist())
        return list(zip(self._counts[low:high].tolist(), chains, strict=True))


_GRAMS: WeakKeyDictionary[Datastore, Grams] = WeakKeyDictionary()


def said(drafter: PhrasesDrafter, token: int) -> list[Chain]:
    """The most common chains after a token in the drafter's stores of kind "ngram"."""
    found: list[tuple[float, Chain]] = []
    for store in drafter.stores:
        if store.manifest.kind == "ngram":
            if store not in _GRAMS:
                _GRAMS[store] = Grams(store)
            found += _GRAMS[store].after(token)
    return [chain for _, chain in sorted(found, key=lambda one: -one[0])]


def written(drafter: RestDrafter, query: Int32) -> list[Chain]:
    """The most frequent chains after the last tokens of the text in the drafter's stores."""
    nodes = trie(drafter.shards, query, CHAIN)
    leaf = np.ones(len(nodes), np.bool_)
    leaf[nodes[:, TRIE_PARENT]] = False
    leaves = np.flatnonzero(leaf)
    order = np.argsort(-nodes[leaves, continuations.CONTINUATION_COUNT], kind="stable")
    chains = []
    for node in leaves[order[: 2 * GUESSES]].tolist():
        chain: list[int] = []
        while node:
            chain.append(int(nodes[node, TRIE_TOKEN]))
            node = int(nodes[node, TRIE_PARENT])
        chains.append(tuple(reversed(chain)))
    return chains


class Hierarchy(PaperSearch):
    """Drafts seven chains of four tokens from three databases, asked one after the other.

    The databases are ordered by temporal locality: this text, the model's own answers (a store of
    kind "ngram"), a corpus (a store of kind "suffix"). A database is asked only for the chains that
    those before it have not filled, and takes no time otherwise. The chains are merged into one
    tree. The paper also fills its first database from a Jacobi window, tokens that the model
    decodes in parallel in the same forward pass; there is none here.

    Attributes:
        asked: how often each database was asked, in order.
    """

    uses: ClassVar[tuple[str, ...]] = ("context", "phrases", "rest")

    def _prepare(self) -> None:
        super()._prepare()
        self.asked = [0] * len(self.uses)

    def begin(self, context: Context) -> None:
        super().begin(context)
        self._context, self._recent = context, Recent()

    def observe(self, step: Step, patient: bool | None = None) -> None:
        """The text is read when a tree is grown; stores are looked up when they are asked."""

    def _published(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool,
        generator: np.random.Generator | None,
    ) -> DraftTree | None:
        if chain:
            return None
        rows: dict[Chain, int] = {}
        for level, name in enumerate(self.uses):
            expert = self._expert(name)
            if len(rows) == GUESSES or expert is None or limit < 1 or depth < 1:
                continue
            drafter, column = expert
            start = time.perf_counter()
            self.asked[level] += 1
            for found in self._ask(level, drafter, root):
                if found not in rows and len(rows) < GUESSES:
                    rows[found] = 1 << column
            self.seconds[column] = time.perf_counter() - start
        tree = merged(list(rows.items()), limit, depth)
        return tree.without(self._suppressed) if len(self._suppressed) else tree

    def _ask(self, level: int, drafter: Any, root: int) -> list[Chain]:
        if level == 0:
            self._recent.read(self._context.tokens)
            return self._recent.after(root)
        if level == 1:
            return said(drafter, root)
        return written(drafter, self._context.tokens[-KEY:])
