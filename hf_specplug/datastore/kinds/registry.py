"""Kinds of datastore by name: those of this folder, and whatever else was registered."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TypeVar

from hf_specplug.datastore.kinds.contract import Index
from hf_specplug.errors import StoreError

I = TypeVar("I", bound=type[Index])  # noqa: E741
DEFAULT_KIND = "suffix"
REGISTERED: dict[str, type[Index]] = {}
"""What has been registered so far; `registry()` imports the rest first."""


def register_kind(cls: I) -> I:
    """Make an index class known by its `kind`.

    Raises:
        StoreError: another class has that name.
    """
    known = REGISTERED.get(cls.kind)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise StoreError(f"two kinds of datastore are called {cls.kind!r}: {known} and {cls}")
    REGISTERED[cls.kind] = cls
    return cls


def registry() -> dict[str, type[Index]]:
    """All index classes by kind, in alphabetical order."""
    _import_all()
    return dict(sorted(REGISTERED.items()))


@cache
def _import_all() -> None:
    """Import every module of this folder, which registers its kinds."""
    package = importlib.import_module("hf_specplug.datastore.kinds")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def index_class(kind: str) -> type[Index]:
    """The index class of a kind.

    Raises:
        StoreError: no kind has that name.

    Example:
        >>> index_class("suffix").array_names
        ('tokens', 'suffixes')
    """
    kinds = registry()
    if kind not in kinds:
        raise StoreError(f"the kind of a datastore is one of {', '.join(kinds)}, not {kind!r}")
    return kinds[kind]
