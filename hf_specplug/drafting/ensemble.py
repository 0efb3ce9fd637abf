"""The ensemble of a plug: its drafters, their mixer, and a set of drafters for each call."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import give, new_readers
from hf_specplug.drafting import state
from hf_specplug.drafting.drafter_sets import DrafterSet, DrafterSets
from hf_specplug.drafting.mixer import Mixer


class Ensemble:
    """Holds the drafters and the mixer of a plug. What they learn is kept from call to call.

    Args:
        drafters: the drafters, in the order of their bits in `DraftTree.sources`.

    Attributes:
        drafters, mixer: the plug's own drafters and mixer.
        lock: held while drafters, or what they share, are used or changed.

    Example:
        >>> ensemble = Ensemble([])
        >>> ensemble.acquire().number
        0
    """

    def __init__(self, drafters: list[Drafter]) -> None:
        self.drafters = drafters
        self.mixer = Mixer([drafter.name for drafter in drafters])
        self._sets = DrafterSets()

    @property
    def lock(self) -> Any:
        return self._sets.lock

    def __getstate__(self) -> dict[str, Any]:
        return {"drafters": self.drafters, "mixer": self.mixer}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        vars(self).update(saved)
        self._sets = DrafterSets()

    def acquire(self) -> DrafterSet:
        """Take a set of drafters for one call; return it with `release`.

        An exception raised while a drafter is copied propagates.
        """
        return self._sets.acquire(self.drafters, self.mixer)

    def release(self, drafter_set: DrafterSet) -> None:
        """Return the set of a call that has ended."""
        self._sets.release(drafter_set)

    def add_stores(self, stores: Iterable[Datastore]) -> None:
        """Add datastores to the drafters that read their kinds; missing drafters are created."""
        with self.lock:
            for store in stores:
                self._add_store(store)

    def _add_store(self, store: Datastore) -> None:
        present = [drafter for drafter in self.drafters if drafter.reads(store)]
        if present:
            give([store], present)
            self.drafters = [*self.drafters]  # a new list: drafter sets must be made again
            return
        self.drafters = create([*self.drafters, *new_readers(store)])
        learned = self.mixer.state_dict()
        self.mixer = Mixer([drafter.name for drafter in self.drafters])
        self.mixer.load_state_dict(learned)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the learned state of drafters and mixer to a safetensors file."""
        with self.lock:
            states = state.learned(self.mixer, self.drafters)
        state.save(path, states)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Restore what `save_state` wrote. Raises StateError if it does not fit."""
        states = state.load(path)
        with self.lock:
            self.drafters = state.taught(states, self.mixer, self.drafters)
