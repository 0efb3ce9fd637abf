"""Tri-grams: what followed the last two tokens, in a corpus and in the text so far.

ADED (Liu et al. 2024, arXiv 2407.12021) drafts from a corpus's conditional probabilities, and adds
to those of the tri-grams that the text confirms. Here what the text taught is counted with decay
beside the corpus and both are put together as one distribution, so that probabilities stay
probabilities; it is kept across requests, within a fixed size. The paper's search is
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
from hf_specplug.drafters.store_drafter import StoreDrafter
from hf_specplug.drafters.successor_table import SuccessorTable
from hf_specplug.kernels import trigram as kernels

DECAY = 0.8
"""Of what followed a pair of tokens in the text, each time something follows it again."""

PROMPT = 4096
"""Tokens of a prompt that are learned, the last ones."""

ROWS = 1 << 16
"""Pairs of tokens that are remembered from texts: about 5 MB."""


@register
class TrigramDrafter(StoreDrafter):
    """Continues each path by what followed its last two tokens in the stores and in the text.

    It works without a store, too.

    Attributes:
        shards: what it reads, as `hf_specplug.kernels.trigram` takes it, each with its vocabulary.
        table: what the text taught.
        tail: int32[2], the last two tokens of the text, -1 where there is none.

    Example:
        >>> TrigramDrafter().stores
        []
    """

    name: ClassVar[str] = "trigram"
    kinds: ClassVar[frozenset[str]] = frozenset({"trigram"})
    rows_per_node: ClassVar[int] = 12

    def __init__(
        self, stores: Iterable[str | os.PathLike[str] | Datastore] = (), tokenizer: Any = None
    ) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self.shards: list[tuple[tuple[NDArray[Any], ...], int]] = []
        self.table = SuccessorTable(ROWS, kernels.WIDTH, 1 / (1 - DECAY))
        self.tail: Int32 = np.full(2, -1, np.int32)
        self._allocate(32)
        super().__init__(stores, tokenizer)

    def _allocate(self, nodes: int) -> None:
        self._pairs = np.empty((nodes, 2), np.int32)
        self._known = np.empty(nodes, np.int64)
        self._totals = np.empty(nodes, np.int64)
        self._tokens = np.empty((nodes, kernels.CANDIDATES), np.int32)
        self._counts = np.empty((nodes, kernels.MOST), np.int64)
        self._out = np.empty((nodes * self.rows_per_node, 3), np.int32)

    def _opened(self, store: Datastore) -> None:
        for shard in store.shards:
            if len(shard.seconds):
                # plain arrays: a kernel is slow to look at a subclass
                arrays = tuple(getattr(shard, name).view(np.ndarray) for name in shard.array_names)
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
        """It shares the table, for as long as both draft for the same vocabulary."""
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
        table.clock = kernels.learn(
            table.keys,
            table.stamps,
            table.visits,
            table.ids,
            table.weights,
            table.clock,
            self.tail,
            tokens,
            DECAY,
        )

    def expand(self, frontier: Frontier) -> Int32:
        count = len(frontier.nodes)
        if len(self._pairs) < count:
            self._allocate(2 * count)
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
        """What texts taught: see `SuccessorTable.state_dict`."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        self.table.load_state_dict(state)
