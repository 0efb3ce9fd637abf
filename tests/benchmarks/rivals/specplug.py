"""Ours, as `simulate` replays it: any drafters, with or without datastores."""

from __future__ import annotations

from hf_specplug.drafters.contract import Context, Drafter, Int32, Step, TopK
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import give
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.tree import DraftTree
from tests.benchmarks.rivals.base import Drawn, Given, Rival


class Ours(Rival):
    """The tree search over drafters and their mixer.

    Args:
        drafters: names; those that read datastores are given ours.
    """

    def __init__(self, given: Given, drafters: list[str]) -> None:
        self._vocab = given.vocab_size
        self._drafters = create(drafters)
        give(given.stores, self._drafters)
        self._mixer = Mixer(drafters)

    def begin(self, prompt: Int32) -> None:
        self._context = Context(prompt, self._vocab)
        self._search = TreeSearch(self._drafters, self._mixer, self._vocab, _fail)
        self._answering = False
        for drafter in self._drafters:
            drafter.begin(self._context)

    def draft(self, limit: int, depth: int) -> DraftTree:
        return self._search.grow(self._context.last, limit, depth)

    def tree(self, draft: DraftTree) -> Drawn:
        return draft.tokens, draft.parents

    def observe(self, emitted: Int32, rows: TopK) -> None:
        self._search.learn(emitted)
        self._context.append(emitted)
        last, count = len(self._context) - 1, len(rows.ids)  # the last one was not fed yet
        fed = self._context.tokens[last - count : last]
        visited = list(range(count if self._answering else 0))
        step = Step.of_text(fed, last - count, visited, emitted, rows)
        for drafter in self._drafters:
            drafter.observe(step)
        self._answering = True


def _fail(drafter: Drafter, error: Exception) -> None:
    raise error
