"""Concurrent calls: each call has its own drafters, which share what they learn.

Drafting takes a fraction of the time of a forward pass. All drafters of a plug therefore propose
and learn under one lock, so that neither they nor their kernels need to be thread-safe. The model
runs outside the lock.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import count

from hf_specplug import forking
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafting.mixer import Mixer

MAX_KEPT_SETS = 16
"""Maximum number of drafter sets kept for later calls, including the plug's own."""


@dataclass(frozen=True, slots=True)
class DrafterSet:
    """The drafters and the mixer of one call.

    Attributes:
        number: the lowest free number when the call began; concurrent calls have different ones.
        drafters: the plug's own if `number` is 0, else others that share what they learn.
        own: the plug's own drafters.
        mixer: the plug's mixer.
        thread: id of the thread that runs the call.
    """

    number: int
    drafters: list[Drafter]
    own: list[Drafter]
    mixer: Mixer
    thread: int


class DrafterSets:
    """Provides each call with drafters.

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
        """Take a set of drafters for one call; return it with `release`.

        An exception raised while a drafter is copied propagates.

        Args:
            own: the plug's drafters; a new list object if they changed since the last call.
            mixer: the plug's mixer.
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
        """Return the set of a call that has ended."""
        with self.lock:
            if self._taken.get(drafter_set.number) is drafter_set:
                del self._taken[drafter_set.number]
                if 0 < drafter_set.number < MAX_KEPT_SETS and drafter_set.own is self._own:
                    self._kept[drafter_set.number] = drafter_set.drafters

    def after_fork(self) -> None:
        """In a forked child: forget the calls of other threads, which do not exist there."""
        thread = threading.get_ident()
        self._taken = {
            n: drafter_set for n, drafter_set in self._taken.items() if drafter_set.thread == thread
        }
