"""Retrieval from token datastores: what followed the same tokens in a corpus.

REST (He et al. 2023, arXiv 2311.08252, section 3) looks up the longest suffix of the text in a
suffix array. Here every path of the tree is looked up, not only the text: the interval of a path's
matches is part of its parent's, and found by bisection. Of many occurrences a sample at even
distances is counted. Counts of several shards and stores add up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Frontier, Int32, Step
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.drafters.store_drafter import StoreDrafter, plain_arrays
from hf_specplug.kernels import retrieval as kernels

Shard = tuple[NDArray[Any], NDArray[Any], int]
"""Tokens, their suffix array, and the vocabulary size: higher ids separate documents."""


@register
class RestDrafter(StoreDrafter):
    """Proposes what follows the longest suffix of each path in the stores.

    Evidence: the length of the match in tokens, the share of the continuation in all occurrences of
    the match, and their number (see `hf_specplug.kernels.retrieval`).

    Args:
        stores, tokenizer: see `StoreDrafter`.

    Example:
        >>> RestDrafter().stores
        []
    """

    name: ClassVar[str] = "rest"
    kinds: ClassVar[frozenset[str]] = frozenset({"suffix"})
    rows_per_node: ClassVar[int] = kernels.PROPOSED

    def __init__(
        self, stores: Iterable[str | os.PathLike[str] | Datastore] = (), tokenizer: Any = None
    ) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._shards: list[_Matches] = []
        self._reset()
        super().__init__(stores, tokenizer)

    @property
    def shards(self) -> list[Shard]:
        """The shards of all stores."""
        return [(matches.tokens, matches.suffixes, matches.vocab) for matches in self._shards]

    def _reset(self) -> None:
        """Forget the text."""
        self._context: Context | None = None
        self._out = np.empty((0, 3), np.int32)
        self._raw = np.empty((0, 0, kernels.MATCH_COLUMNS), np.int32)
        self._ends = np.empty((0, 0), np.int32)

    def _opened(self, store: Datastore) -> None:
        shards = [_Matches(shard, store.manifest.vocab_size) for shard in store.shards]
        shards = [matches for matches in shards if len(matches.tokens)]
        if self._context is not None:
            for matches in shards:
                matches.begin(self._context.tokens)
        self._shards += shards

    def __getstate__(self) -> dict[str, Any]:
        return {"stores": self.stores, "priors": self.priors, "context": self._context}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__init__(kept["stores"])  # type: ignore[misc]
        self.priors = kept["priors"]
        if kept["context"] is not None:
            self.begin(kept["context"])

    def begin(self, context: Context) -> None:
        super().begin(context)
        self._context = context
        for matches in self._shards:
            matches.begin(context.tokens)

    def for_another_call(self) -> RestDrafter:
        twin = self._sharing()
        twin.stores = list(self.stores)
        twin._shards = [matches.for_another_text() for matches in self._shards]
        twin._reset()
        return twin

    def observe(self, step: Step) -> None:
        for matches in self._shards:
            matches.advance(step.emitted)

    def intervals(self, capacity: int, nodes: int) -> tuple[Any, ...]:
        """For `kernels.tables`: the only shard, its matches, and room for its rows.

        Args:
            capacity: number of search nodes at most.
            nodes: number of nodes to expand at once, at most.
        """
        self._make_room(nodes)
        matches = self._shards[0]
        matches.make_room(capacity)
        return matches.arrays, matches.vocab, *matches.intervals, self._raw, self._ends

    @property
    def single(self) -> bool:
        """Whether there is one shard only."""
        return len(self._shards) == 1

    def _make_room(self, nodes: int) -> None:
        rows = nodes * self.rows_per_node
        if len(self._out) < rows or len(self._raw) != len(self._shards):
            self._out = np.empty((2 * rows, 3), np.int32)
            shape = (len(self._shards), len(self._out), kernels.MATCH_COLUMNS)
            self._raw = np.empty(shape, np.int32)
            self._ends = np.empty(shape[:2], np.int32)

    def expand(self, frontier: Frontier) -> Int32:
        limit = self.rows_per_node
        if not self._shards:
            return self._out[:0]
        self._make_room(len(frontier.nodes))
        for index, matches in enumerate(self._shards):
            matches.expand(frontier, limit, self._ends[index], self._raw[index])
        rows = kernels.combine(self._raw, self._ends, frontier.nodes, limit, self._out)
        return self._out[:rows]


class _Matches:
    """One shard with the matches of the text, and of the paths of a tree, in it."""

    def __init__(self, shard: Any, vocab: int) -> None:
        self.tokens, self.suffixes = plain_arrays(shard, "tokens", "suffixes")
        self.vocab = vocab
        self._allocate(512)

    def _allocate(self, capacity: int) -> None:
        shape = (capacity, kernels.LONGEST_MATCH + 1)
        self._low, self._high = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self._longest = np.zeros(capacity, np.int32)

    def for_another_text(self) -> _Matches:
        twin = object.__new__(_Matches)
        vars(twin).update(vars(self))
        twin._allocate(512)
        return twin

    def begin(self, tokens: Int32) -> None:
        self._low[0] = self._high[0] = 0
        self._high[0, 0] = len(self.tokens)
        self.advance(tokens[-kernels.LONGEST_MATCH :])

    def advance(self, tokens: Int32) -> None:
        self._longest[0] = kernels.advance(
            self.tokens, self.suffixes, self._low[0], self._high[0], tokens
        )

    @property
    def arrays(self) -> tuple[NDArray[Any], Int32]:
        return self.tokens, self.suffixes

    @property
    def intervals(self) -> tuple[Int32, Int32, Int32]:
        return self._low, self._high, self._longest

    def make_room(self, capacity: int) -> None:
        """Make room for so many search nodes."""
        if len(self._longest) < capacity:
            low, high, longest = self._low[0], self._high[0], self._longest[0]
            self._allocate(capacity)
            self._low[0], self._high[0], self._longest[0] = low, high, longest

    def expand(self, frontier: Frontier, limit: int, ends: Int32, out: Int32) -> None:
        self.make_room(len(frontier.pool))
        kernels.expand(
            *self.arrays,
            self.vocab,
            *self.intervals,
            frontier.pool,
            frontier.nodes,
            limit,
            ends,
            out,
        )
