"""Opening datastores by reference: a folder, an opened datastore, or `hf://NAME` on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from hf_specplug.datastore.store import Datastore

HUB_SCHEME = "hf://"
"""Prefix of what is on the Hugging Face Hub: a datastore here, a dataset as a corpus."""


def open_all(
    stores: Iterable[str | os.PathLike[str] | Datastore], tokenizer: Any = None
) -> list[Datastore]:
    """Open several datastores.

    Args:
        stores: folders, `hf://NAME` or `hf://NAME@REVISION`, or opened datastores.
        tokenizer: the model's tokenizer; if given, datastores of another tokenizer are refused.

    Raises:
        StoreError: one cannot be opened, or was built with another tokenizer.
    """
    opened = [store if isinstance(store, Datastore) else _open(store) for store in stores]
    if tokenizer is None:
        return opened
    return [store.with_tokenizer(tokenizer) for store in opened]


def _open(path: str | os.PathLike[str]) -> Datastore:
    name = os.fspath(path)
    if not name.startswith(HUB_SCHEME):
        return Datastore(path)
    from hf_specplug.datastore.hub import from_hub  # imports the Hub's client, only when needed

    repo, _, revision = name.removeprefix(HUB_SCHEME).partition("@")
    return from_hub(repo, revision or None)
