"""Calls at the same time: each has drafters of its own, and what these learn is shared.

Drafting takes a fraction of the time of a forward pass. So all drafters of a plug are asked and
told under one lock, and neither they nor their kernels need to know of threads; the model runs
outside of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import count

from hf_specplug import forking
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafting.mixer import Mixer

KEPT = 16
"""Sets of drafters that are kept for later calls at most."""


@dataclass(frozen=True, slots=True)
class DrafterSet:
    """What one call drafts with.

    Attributes:
        number: the lowest that is free; those of calls at the same time differ.
        drafters: at number 0 the plug's own, else others that share what they learn.
        own: the plug's, which they share with.
        mixer: made for them.
        thread: that of the call.
    """

    number: int
    drafters: list[Drafter]
    own: list[Drafter]
    mixer: Mixer
    thread: int


class DrafterSets:
    """Gives each call its drafters.

    Attributes:
        lock: held while drafters, or what they share, are used or changed.

    Example:
        >>> drafter_sets = DrafterSets()
        >>> one, other = drafter_sets.acquire([], Mixer([])), drafter_sets.acquire([], Mixer([]))
        >>> one.number, other.number
        (0, 1)
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._own: list[Drafter] = []
        self._kept: dict[int, list[Drafter]] = {}
        self._taken: dict[int, DrafterSet] = {}
        forking.register(self)

    def acquire(self, own: list[Drafter], mixer: Mixer) -> DrafterSet:
        """The drafters of one call, to be given back by `release`.

        Raises whatever copying a drafter raises.

        Args:
            own: the plug's drafters; another list than the last time if they have changed.
            mixer: the plug's.
        """
        with self.lock:
            if own is not self._own:
                self._own, self._kept = own, {}
            number = next(number for number in count() if number not in self._taken)
            drafters = self._kept.pop(number, []) if number else own
            if len(drafters) < len(own):
                drafters = [drafter.for_another_call() for drafter in own]
            drafter_set = self._taken[number] = DrafterSet(
                number, drafters, own, mixer, threading.get_ident()
            )
            return drafter_set

    def release(self, drafter_set: DrafterSet) -> None:
        """The call is over."""
        with self.lock:
            if self._taken.get(drafter_set.number) is drafter_set:
                del self._taken[drafter_set.number]
                if 0 < drafter_set.number < KEPT and drafter_set.own is self._own:
                    self._kept[drafter_set.number] = drafter_set.drafters

    def after_fork(self) -> None:
        """The calls of other threads are over."""
        thread = threading.get_ident()
        self._taken = {
            n: drafter_set for n, drafter_set in self._taken.items() if drafter_set.thread == thread
        }
