"""The drafters that a search asks in `kernels.rounds`, all in one call, instead of one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_specplug.drafters.context import ContextDrafter
from hf_specplug.drafters.contract import Drafter, Noise
from hf_specplug.drafters.frequency import FrequencyDrafter
from hf_specplug.drafters.gumbel import GumbelDrafter
from hf_specplug.drafters.recycling import RecyclingDrafter
from hf_specplug.drafters.sparse import SparseDrafter
from hf_specplug.drafters.stand import StandDrafter
from hf_specplug.drafting.experts import Expert
from hf_specplug.kernels import rounds

_TABLES: dict[type[Drafter], Callable[[Any, Noise], Any]] = {
    ContextDrafter: lambda drafter, noise: drafter.suffixes,
    RecyclingDrafter: lambda drafter, noise: drafter.matrix,
    StandDrafter: lambda drafter, noise: drafter.grams,
    FrequencyDrafter: lambda drafter, noise: drafter.counts,
    SparseDrafter: lambda drafter, noise: drafter.contexts,
    GumbelDrafter: lambda drafter, noise: drafter.favoured(noise),
}
_PLACES = {name: place for place, name in enumerate(rounds.DRAFTERS)}
_ALL_ROUNDS = 1 << 31


def in_kernel(drafter: Drafter) -> bool:
    """Whether the kernel knows a drafter. It knows no subclasses: they may propose otherwise."""
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
        self._tables: list[Any] = list(rounds.NOTHING)
        for row, expert in enumerate(experts):
            drafter = expert.drafter
            asked = _ALL_ROUNDS if drafter.rounds is None else drafter.rounds
            self.rows[row] = _PLACES[drafter.name], asked, expert.column, expert.begin, expert.end

    def tables(self, noise: Noise) -> rounds.Tables:
        """The present tables of the drafters."""
        for expert in self.experts:
            drafter = expert.drafter
            self._tables[_PLACES[drafter.name]] = _TABLES[type(drafter)](drafter, noise)
        return rounds.Tables(*self._tables)
