"""REST (He et al. 2023, arXiv 2311.08252) as published: the trie of what follows the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import Context, Int32, Step
from hf_specplug.drafters.rest import RestDrafter, Shard
from hf_specplug.kernels import continuations as kernels
from hf_specplug.kernels.retrieval import LONGEST_MATCH, SHORTEST_MATCH
from hf_specplug.kernels.trie import TRIE_PARENT, TRIE_TOKEN
from hf_specplug.published.paper import OneDrafterSearch
from hf_specplug.tree import DraftTree

OCCURRENCES = 5000
"""Occurrences of a match that are read from each shard, the first ones of the suffix array."""

CONTINUATION = 10
"""Tokens of a continuation at most."""

CHOICES = 64
"""Nodes of a draft at most."""


def trie(shards: Sequence[Shard], query: Int32, longest: int) -> Int32:
    """The trie of what follows a query in the shards: see `hf_specplug.kernels.continuations`.

    Args:
        shards: as `RestDrafter.shards` lists them.
        query: int32[n], the last tokens of the text.
        longest: tokens of a continuation at most.

    Returns:
        int32[nodes, CONTINUATION_COLUMNS]; only node 0 if the query does not occur.
    """
    found = [kernels.occurrences(tokens, suffixes, query) for tokens, suffixes, _ in shards]
    spans = [(low, min(high, low + OCCURRENCES)) for low, high in found]
    capacity = 1 + longest * sum(high - low for low, high in spans)
    nodes = np.zeros((capacity, kernels.CONTINUATION_COLUMNS), np.int32)
    table = np.zeros(1 << (2 * capacity - 1).bit_length(), np.int32)
    size = 1
    for (tokens, suffixes, vocab), (low, high) in zip(shards, spans, strict=True):
        size = kernels.merge(
            tokens, suffixes, vocab, low, high, len(query), longest, nodes, table, size
        )
    return nodes[:size]


class Rest(OneDrafterSearch):
    """Drafts the most frequent prefixes of what follows the longest match of the text.

    The suffixes of the text, from 16 tokens to 2, are looked up until one occurs in a store. Its
    continuations of ten tokens are merged in a trie, and the `CHOICES` most frequent nodes (fewer
    if `limit` is lower) are the draft. Where nothing matches, the authors' code drafts an arbitrary
    token; here nothing is drafted. Continuations end with their document.
    """

    uses: ClassVar[tuple[str, ...]] = ("rest",)

    def begin(self, context: Context) -> None:
        super().begin(context)
        self._context = context

    def observe(self, step: Step, patient: bool | None = None) -> None:
        """The text is looked up when a tree is grown; nothing is learned."""

    def _tree(
        self, drafter: RestDrafter, source: int, root: int, limit: int, depth: int
    ) -> DraftTree:
        nodes = self._retrieved(drafter)
        chosen = np.empty(min(limit, CHOICES), np.int32)
        chosen = chosen[: kernels.frequent(nodes, len(nodes), depth, chosen)]
        place = np.full(len(nodes), -1, np.int32)
        place[chosen] = np.arange(len(chosen))
        parents, counts = nodes[chosen, TRIE_PARENT], nodes[:, kernels.CONTINUATION_COUNT]
        nodes[0, kernels.CONTINUATION_COUNT] = counts[nodes[:, TRIE_PARENT] == 0].sum()
        return DraftTree(
            nodes[chosen, TRIE_TOKEN],
            place[parents],
            (counts[chosen] / counts[parents]).astype(np.float32),
            np.full(len(chosen), source, np.uint16),
        )

    def _retrieved(self, drafter: RestDrafter) -> Int32:
        """The trie of the longest suffix of the text that occurs; node 0 alone if none does."""
        text = self._context.tokens
        for length in range(min(LONGEST_MATCH, len(text)), SHORTEST_MATCH - 1, -1):
            nodes = trie(drafter.shards, text[-length:], CONTINUATION)
            if len(nodes) > 1:
                return nodes
        return np.zeros((1, kernels.CONTINUATION_COLUMNS), np.int32)
