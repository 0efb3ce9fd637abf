"""The drafters that a search asks in `kernels.rounds`, all in one call, instead of one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_specplug.drafters.context import ContextDrafter
from hf_specplug.drafters.contract import Drafter, Noise
from hf_specplug.drafters.frequency import FrequencyDrafter
from hf_specplug.drafters.gumbel import GumbelDrafter
from hf_specplug.drafters.phrases import PhrasesDrafter
from hf_specplug.drafters.recycling import RecyclingDrafter
from hf_specplug.drafters.rest import RestDrafter
from hf_specplug.drafters.sparse import SparseDrafter
from hf_specplug.drafters.stand import StandDrafter
from hf_specplug.drafters.store_drafter import StoreDrafter
from hf_specplug.drafters.trigram import TrigramDrafter
from hf_specplug.drafting.experts import Expert
from hf_specplug.kernels import rounds, store_tables, tables

_TABLES: dict[type[Drafter], Callable[[Any, Noise, int, int], Any]] = {
    ContextDrafter: lambda drafter, *_: drafter.suffixes,
    RecyclingDrafter: lambda drafter, *_: drafter.matrix,
    StandDrafter: lambda drafter, *_: drafter.grams,
    FrequencyDrafter: lambda drafter, *_: drafter.counts,
    SparseDrafter: lambda drafter, *_: drafter.contexts,
    GumbelDrafter: lambda drafter, noise, *_: drafter.favoured(noise),
    RestDrafter: lambda drafter, _, capacity, nodes: drafter.intervals(capacity, nodes),
    TrigramDrafter: lambda drafter, _, capacity, nodes: drafter.counts(nodes),
    PhrasesDrafter: lambda drafter, _, capacity, nodes: drafter.automaton(capacity),
}
_PLACES = {name: place for place, name in enumerate(tables.ALL)}
_OWN = len(tables.DRAFTERS)
_ALL_ROUNDS = 1 << 31


def in_kernel(drafter: Drafter) -> bool:
    """Whether the kernel knows a drafter.

    It knows no subclasses, which may propose otherwise, and no stores of several shards.
    """
    if isinstance(drafter, RestDrafter | TrigramDrafter) and not drafter.single:
        return False
    return type(drafter) in _TABLES


class Asked:
    """The arguments `asked` and `tables` of `kernels.rounds.run`.

    Args:
        experts: the drafters to ask, each `in_kernel`.

    Attributes:
        rows: int64[n, ASKED_COLUMNS], the argument `asked`.
    """

    def __init__(self, experts: Sequence[Expert]) -> None:
        self.experts = experts
        self.rows = np.empty((len(experts), rounds.ASKED_COLUMNS), np.int64)
        self._tables: list[Any] = [*tables.NOTHING[:_OWN], *store_tables.NO_STORES]
        self._stores = False  # whether a drafter of stores is among them
        for row, expert in enumerate(experts):
            drafter = expert.drafter
            asked = _ALL_ROUNDS if drafter.rounds is None else drafter.rounds
            self.rows[row] = _PLACES[drafter.name], asked, expert.column, expert.begin, expert.end
            self._stores |= isinstance(drafter, StoreDrafter)

    def tables(self, noise: Noise, capacity: int, nodes: int) -> tables.Tables:
        """The present tables of the drafters.

        Args:
            noise: the known sampling noise.
            capacity: number of search nodes at most.
            nodes: number of nodes to expand at once, at most.
        """
        for expert in self.experts:
            drafter = expert.drafter
            made = _TABLES[type(drafter)](drafter, noise, capacity, nodes)
            self._tables[_PLACES[drafter.name]] = made
        own, stores = self._tables[:_OWN], self._tables[_OWN:]
        read = store_tables.StoreTables(*stores) if self._stores else ()
        return tables.Tables(*(*own, read))
