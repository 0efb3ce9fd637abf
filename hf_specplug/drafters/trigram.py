"""Tri-grams: what followed the last two tokens, in a corpus and in the text so far.

ADED (Liu et al. 2024, arXiv 2407.12021) drafts from a corpus's conditional probabilities, and
raises those of the tri-grams that the text confirms. Here the tri-grams of texts are counted with
decay, apart from the corpus, and both counts are combined into one proper distribution. The counts
of texts are kept across requests, in a table of fixed size. The paper's search is
`SpecPlug(published="aded")`.
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
from hf_specplug.drafters.successor_table import SuccessorTable
from hf_specplug.kernels import trigram as kernels

DECAY = 0.8
"""The counts of a pair's successors are multiplied by this whenever the pair occurs again."""

PROMPT = 4096
"""The last so many tokens of a prompt are learned."""

ROWS = 1 << 16
"""Pairs of tokens that are kept from texts: about 5 MB."""


@register
class TrigramDrafter(StoreDrafter):
    """Proposes what followed the last two tokens of each path in the stores and in texts.

    It works without a store as well.

    Evidence: the weight of the token in the table of texts, the occurrences of the pair in the
    corpus, and the probability of the token.

    Args:
        stores, tokenizer: see `StoreDrafter`.

    Attributes:
        shards: (arrays, vocabulary size) of each shard, as `hf_specplug.kernels.trigram` takes it.
        table: the counts of texts.
        tail: int32[2], the last two tokens of the text; -1 = none.

    Example:
        >>> TrigramDrafter().stores
        []
    """

    name: ClassVar[str] = "trigram"
    kinds: ClassVar[frozenset[str]] = frozenset({"trigram"})
    rows_per_node: ClassVar[int] = kernels.PROPOSED

    def __init__(
        self, stores: Iterable[str | os.PathLike[str] | Datastore] = (), tokenizer: Any = None
    ) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self.shards: list[tuple[tuple[NDArray[Any], ...], int]] = []
        self.table = SuccessorTable(ROWS, kernels.SUCCESSORS, 1 / (1 - DECAY))
        self.tail: Int32 = np.full(2, -1, np.int32)
        self._allocate(32)
        super().__init__(stores, tokenizer)

    def _allocate(self, nodes: int) -> None:
        self._pairs = np.empty((nodes, 2), np.int32)
        self._known = np.empty(nodes, np.int64)
        self._totals = np.empty(nodes, np.int64)
        self._tokens = np.empty((nodes, kernels.CANDIDATES), np.int32)
        self._counts = np.empty((nodes, kernels.MAX_COUNTED), np.int64)
        self._out = np.empty((nodes * self.rows_per_node, 3), np.int32)

    def _opened(self, store: Datastore) -> None:
        for shard in store.shards:
            if len(shard.seconds):
                arrays = plain_arrays(shard, *shard.array_names)
                self.shards.append((arrays, store.manifest.vocab_size))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "shards": []}

    def begin(self, context: Context) -> None:
        super().begin(context)
        if self.table.vocab_size != context.vocab_size:
            self.table = self.table.emptied(context.vocab_size)
        self.tail[:] = -1
        self._learn(context.tokens[-PROMPT:])

    def for_another_call(self) -> TrigramDrafter:
        """A drafter that shares the table, until one of the two gets another vocabulary."""
        twin = self._sharing()
        twin.stores, twin.shards = list(self.stores), list(self.shards)
        twin.tail = np.full(2, -1, np.int32)
        twin._allocate(32)
        return twin

    def observe(self, step: Step) -> None:
        self._learn(step.emitted)

    def _learn(self, tokens: Int32) -> None:
        table = self.table
        table.make_room(len(tokens))
        table.clock = kernels.learn(*table.arrays, table.clock, self.tail, tokens, DECAY)

    def counts(self, nodes: int) -> tuple[Any, ...]:
        """For `kernels.tables`: the only shard or none, the table, the last tokens, and scratch.

        Args:
            nodes: number of nodes to expand at once, at most.
        """
        self._make_room(nodes)
        table, scratch = self.table, (self._known, self._totals, self._tokens, self._counts)
        shard = self.shards[0] if self.shards else kernels.NO_SHARD
        return *shard, table.keys, table.ids, table.weights, self.tail, self._pairs, *scratch

    @property
    def single(self) -> bool:
        """Whether there is one shard at most."""
        return len(self.shards) < 2

    def _make_room(self, nodes: int) -> None:
        if len(self._pairs) < nodes:
            self._allocate(2 * nodes)

    def expand(self, frontier: Frontier) -> Int32:
        count = len(frontier.nodes)
        self._make_room(count)
        known, totals, pairs = self._known[:count], self._totals[:count], self._pairs[:count]
        known[:] = totals[:] = 0
        kernels.last_pairs(self.tail[0], frontier.root, frontier.pool, frontier.nodes, pairs)
        for arrays, vocab in self.shards:
            kernels.gather(arrays, vocab, pairs, known, totals, self._tokens, self._counts)
        table = self.table
        rows = kernels.expand(
            table.keys,
            table.ids,
            table.weights,
            pairs,
            known,
            totals,
            self._tokens,
            self._counts,
            frontier.nodes,
            self.rows_per_node,
            self._out,
        )
        return self._out[:rows]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The table's arrays: see `SuccessorTable.state_dict`."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        self.table.load_state_dict(state)
