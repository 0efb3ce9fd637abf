"""The base class of drafters that read datastores: it opens, checks and keeps them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.opening import open_all
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Drafter
from hf_specplug.drafters.registry import registry
from hf_specplug.errors import OptionError, StoreError


class StoreDrafter(Drafter):
    """A drafter that reads datastores of its `kinds`.

    Args:
        stores: folders, or opened stores; `add` adds more at any time.
        tokenizer: the model's tokenizer; stores that were built with another one are refused.

    Attributes:
        stores: the opened stores.

    Raises:
        OptionError: a store is of another kind.
        StoreError: a store cannot be opened, or was built with another tokenizer.
    """

    def __init__(
        self, stores: Iterable[str | os.PathLike[str] | Datastore] = (), tokenizer: Any = None
    ) -> None:
        self.stores: list[Datastore] = []
        for store in open_all(stores, tokenizer):
            self.add(store)

    def add(self, store: Datastore) -> None:
        """Read this store as well, from the next token on.

        Raises:
            OptionError: the store is of a kind that this drafter does not read.
        """
        if store.manifest.kind not in self.kinds:
            raise OptionError(
                f"drafter {self.name!r} reads stores of kind {', '.join(sorted(self.kinds))}; "
                f"{store.path} is of kind {store.manifest.kind}"
            )
        self.stores.append(store)
        self._opened(store)

    @abstractmethod
    def _opened(self, store: Datastore) -> None:
        """Prepare to read a store that was added."""

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Restore a pickled state, which does not contain what `_opened` makes."""
        vars(self).update(kept)
        for store in self.stores:
            self._opened(store)

    def begin(self, context: Context) -> None:
        """Start a new request.

        Raises:
            StoreError: a store has more token ids than the model.
        """
        for store in self.stores:
            if store.manifest.vocab_size > context.vocab_size:
                raise StoreError(
                    f"{store.path} has {store.manifest.vocab_size:,} token ids, the model "
                    f"{context.vocab_size:,}: it was built with another tokenizer"
                )


def plain_arrays(index: Any, *names: str) -> tuple[NDArray[Any], ...]:
    """Arrays of an index by name, as plain numpy arrays instead of memory-mapped ones.

    numba looks longer at arguments that are a subclass of ndarray. The memory stays the same.
    """
    return tuple(getattr(index, name).view(np.ndarray) for name in names)


def give(stores: Iterable[Datastore], drafters: Iterable[Drafter]) -> None:
    """Add each store to every drafter that reads it."""
    for drafter in drafters:
        for store in stores:
            if drafter.reads(store):
                drafter.add(store)


def new_readers(store: Datastore) -> list[StoreDrafter]:
    """New drafters that have this store, one of each class that reads it.

    Raises:
        OptionError: none does.
    """
    classes = (cls for _, cls in sorted(registry().items()) if issubclass(cls, StoreDrafter))
    made = [drafter for drafter in (cls() for cls in classes) if drafter.reads(store)]
    if not made:
        raise OptionError(f"no drafter reads datastores of kind {store.manifest.kind!r}")
    give([store], made)
    return made


def readers(stores: Iterable[Datastore]) -> list[str]:
    """The names of the drafters that read these stores, each name once."""
    return list(dict.fromkeys(drafter.name for store in stores for drafter in new_readers(store)))
