"""What all drafters that read datastores share: they open, check and keep them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from hf_specplug.datastore.opening import open_all
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Drafter
from hf_specplug.drafters.registry import registry
from hf_specplug.errors import OptionError, StoreError


class StoreDrafter(Drafter):
    """A drafter that reads datastores of some `kinds`; each call sees those that were added.

    Args:
        stores: folders, or opened stores; more can be added at any time.
        tokenizer: the model's, to refuse stores that another one made.

    Attributes:
        stores: the opened ones.
    """

    def __init__(
        self, stores: Iterable[str | os.PathLike[str] | Datastore] = (), tokenizer: Any = None
    ) -> None:
        self.stores: list[Datastore] = []
        for store in open_all(stores, tokenizer):
            self.add(store)

    def add(self, store: Datastore) -> None:
        """Draft from this store, too, from the next token on.

        Raises:
            OptionError: it is of a kind that this drafter does not read.
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
        """Make ready to draft from a store that was added."""

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Take back what a `__getstate__` gave, which leaves out all that `_opened` makes."""
        vars(self).update(kept)
        for store in self.stores:
            self._opened(store)

    def begin(self, context: Context) -> None:
        """Raises StoreError if a store has more token ids than the model."""
        for store in self.stores:
            if store.manifest.vocab_size > context.vocab_size:
                raise StoreError(
                    f"{store.path} has {store.manifest.vocab_size:,} token ids, the model "
                    f"{context.vocab_size:,}: it was built with another tokenizer"
                )


def give(stores: Iterable[Datastore], drafters: Iterable[Drafter]) -> None:
    """Let every drafter read the stores of its kinds."""
    for drafter in drafters:
        for store in stores:
            if store.manifest.kind in drafter.kinds:
                drafter.add(store)


def reader(kind: str) -> StoreDrafter:
    """A new drafter for stores of a kind."""
    for _, drafter in sorted(registry().items()):
        if issubclass(drafter, StoreDrafter) and kind in drafter.kinds:
            return drafter()
    raise OptionError(f"no drafter reads datastores of kind {kind!r}")


def readers(stores: Iterable[Datastore]) -> list[str]:
    """The names of the drafters that read these stores, each once."""
    return list(dict.fromkeys(reader(store.manifest.kind).name for store in stores))
