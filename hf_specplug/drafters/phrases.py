"""Phrase completion: phrases that the text is in the middle of are continued to their end.

Stores of kind "phrases" (boilerplate of a corpus, or given templates) and "ngram" (5-grams of the
model's own answers, as in Hierarchy Drafting: Cho et al. 2025, arXiv 2502.05609) are compiled into
one automaton, which follows the text at a few nanoseconds per token. Unlike the paper's table by
last token, it knows how much of a phrase has been said and the frequency of each continuation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from hf_specplug.datastore.building.executors import tokenize
from hf_specplug.datastore.kinds.phrases import PhraseIndex
from hf_specplug.datastore.kinds.registry import index_class
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Frontier, Int32, Step
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.drafters.store_drafter import StoreDrafter, plain_arrays
from hf_specplug.errors import OptionError
from hf_specplug.kernels import phrases as kernels


@register
class PhrasesDrafter(StoreDrafter):
    """Proposes the continuations of the phrases that each path is in, the longest match first.

    Evidence: the tokens of the phrase that the path ends with, and the share of the continuation in
    all phrases that begin with them (see `hf_specplug.kernels.phrases`).

    The automaton is built when it is first needed: 50,000 phrases take 1 to 2 seconds.

    Args:
        stores, tokenizer: see `StoreDrafter`.
        phrases: texts to draft literally; they need the tokenizer.

    Raises:
        OptionError: phrases are given without a tokenizer.

    Example:
        >>> PhrasesDrafter(tokenizer=tokenizer, phrases=['{"tool": "search", "query": "'])
        ... # doctest: +SKIP
    """

    name: ClassVar[str] = "phrases"
    kinds: ClassVar[frozenset[str]] = frozenset({"phrases", "ngram"})
    rows_per_node: ClassVar[int] = kernels.PROPOSED

    def __init__(
        self,
        stores: Iterable[str | os.PathLike[str] | Datastore] = (),
        tokenizer: Any = None,
        phrases: Iterable[str] = (),
    ) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._parts: list[kernels.Part] = []
        self._given: list[kernels.Part] = []
        self._context: Context | None = None
        self._clear()
        super().__init__(stores, tokenizer)
        texts = list(phrases)
        if texts and tokenizer is None:
            raise OptionError(
                "phrases are texts: tokenising them needs the model's tokenizer, tokenizer=..."
            )
        if texts:
            vocab = len(tokenizer)
            ends = [[*row.tolist(), vocab] for row in tokenize(tokenizer, texts)]
            given = PhraseIndex(PhraseIndex.build_given(np.concatenate(ends), vocab), vocab)
            self._given.append(_part(given, vocab))

    def _clear(self) -> None:
        """Drop the automaton; it is built again when it is next needed."""
        self._nodes = np.empty((0, kernels.STATE_COLUMNS), np.int32)
        self._table = np.zeros(0, np.int32)
        self._root = 0
        self._states = np.zeros(0, np.int32)
        self._out = np.empty((0, 3), np.int32)

    def _opened(self, store: Datastore) -> None:
        vocab, shards = store.manifest.vocab_size, store.shards
        if len(shards) > 1:
            kind: Any = index_class(store.manifest.kind)
            shards = [kind(kind.join(shards, vocab), vocab)]
        self._parts += [_part(shard, vocab) for shard in shards]
        self._clear()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "stores": self.stores,
            "priors": self.priors,
            "_given": self._given,
            "_context": self._context,
        }

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__init__(kept.pop("stores"))  # type: ignore[misc]
        vars(self).update(kept)

    def _ready(self) -> None:
        """Build the automaton unless it exists."""
        if not len(self._nodes):
            self._nodes, self._table = kernels.automaton(self._parts + self._given)
            if self._context is not None:
                self._root = self._after(0, self._context.tokens[-kernels.MAX_PHRASE :])

    def _after(self, state: int, tokens: Int32) -> int:
        return int(kernels.advance(self._nodes, self._table, state, tokens))

    def begin(self, context: Context) -> None:
        super().begin(context)
        self._context = context
        self._ready()
        self._root = self._after(0, context.tokens[-kernels.MAX_PHRASE :])

    def for_another_call(self) -> PhrasesDrafter:
        self._ready()  # so that both share it
        twin = self._sharing()
        twin.stores, twin._parts, twin._given = list(self.stores), [*self._parts], [*self._given]
        twin._context, twin._root = None, 0
        twin._states = np.zeros(0, np.int32)
        twin._out = np.empty((0, 3), np.int32)
        return twin

    def observe(self, step: Step) -> None:
        if len(self._nodes):
            self._root = self._after(self._root, step.emitted)

    def automaton(self, capacity: int) -> tuple[Int32, Int32, int, Int32]:
        """For `kernels.tables`: the automaton, the state of the text, and those of search nodes.

        Args:
            capacity: number of search nodes at most.
        """
        self._ready()
        if len(self._states) < capacity:
            self._states = np.zeros(capacity, np.int32)
        return self._nodes, self._table, self._root, self._states

    def expand(self, frontier: Frontier) -> Int32:
        automaton = self.automaton(len(frontier.pool))
        rows = len(frontier.nodes) * self.rows_per_node
        if len(self._out) < rows:
            self._out = np.empty((2 * rows, 3), np.int32)
        count = kernels.expand(
            *automaton,
            frontier.pool,
            frontier.nodes,
            self.rows_per_node,
            self._out,
        )
        return self._out[:count]


def _part(index: Any, vocab: int) -> kernels.Part:
    tokens, offsets, counts = plain_arrays(index, *index.array_names)
    return tokens, offsets, counts, vocab
