"""Drafters by name: those of this folder, and of other packages by entry point."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from hf_specplug.drafters.contract import Drafter
from hf_specplug.errors import OptionError

D = TypeVar("D", bound=type[Drafter])
_registry: dict[str, type[Drafter]] = {}


def register(cls: D) -> D:
    """Make a drafter class known by its `name`; OptionError if another class has that name."""
    known = _registry.get(cls.name)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise OptionError(f"two drafters are called {cls.name!r}: {known} and {cls}; rename one")
    _registry[cls.name] = cls
    return cls


def registry() -> dict[str, type[Drafter]]:
    """All drafters by name: those of this folder and of `hf_specplug.drafters` entry points."""
    _import_all()
    return dict(_registry)


@cache
def _import_all() -> None:
    """Once: importing a drafter registers it."""
    package = importlib.import_module("hf_specplug.drafters")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"hf_specplug.drafters.{module.name}")
    for entry in entry_points(group="hf_specplug.drafters"):
        entry.load()


RENAMED = {"luck": "gumbel"}
"""Names that drafters had in earlier versions, in options and saved states."""


def _current(name: str) -> str:
    """The name that a drafter has now; warns about an old one."""
    new = RENAMED.get(name, name)
    if new != name:
        warnings.warn(f"drafter {name!r} is called {new!r} now", FutureWarning, stacklevel=3)
    return new


def create(drafters: Iterable[str | Drafter] | str | Drafter) -> list[Drafter]:
    """Turn names or objects into drafters; the order is kept, so that trees are reproducible.

    Raises:
        OptionError: an unknown or repeated name, or something that is neither a name nor a Drafter.

    Example:
        >>> [drafter.name for drafter in create(["context"])]
        ['context']
    """
    if isinstance(drafters, (str, Drafter)):
        drafters = [drafters]
    made: list[Drafter] = []
    known: dict[str, type[Drafter]] = {}
    for drafter in drafters:
        if isinstance(drafter, Drafter):
            made.append(drafter)
        elif isinstance(drafter, str):
            known = known or registry()
            name = _current(drafter)
            if name not in known:
                raise OptionError(f"no drafter is called {name!r}; there are {sorted(known)}")
            made.append(known[name]())
        else:
            raise OptionError(f"a drafter is given by name or as a Drafter, not as {drafter!r}")
    names = [drafter.name for drafter in made]
    if len(set(names)) != len(names):
        raise OptionError(f"each drafter can be used once, but {names} were given")
    if len(made) > MAX_DRAFTERS:
        raise OptionError(f"at most {MAX_DRAFTERS} drafters can be used at once, not {len(made)}")
    return made


def hidden_layer(drafters: Iterable[Drafter]) -> int | None:
    """The layer whose hidden states drafters want, None if none does.

    Raises:
        OptionError: they want those of different layers.
    """
    layers = {drafter.layer: drafter.name for drafter in drafters if "hidden" in drafter.needs}
    if len(layers) > 1:
        raise OptionError(f"drafters can look at one layer's hidden states together, not {layers}")
    return next(iter(layers), None)


MAX_DRAFTERS = 16
"""As many as there are bits in `DraftTree.sources`."""
