"""Drafters by name: those of this folder, and those of other packages by entry point."""

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
REGISTERED: dict[str, type[Drafter]] = {}
"""What has been registered so far; `registry()` imports the rest first."""


def register(cls: D) -> D:
    """Register a drafter class under its `name`; a class decorator.

    Raises:
        OptionError: another class has this name.
    """
    known = REGISTERED.get(cls.name)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise OptionError(f"two drafters are called {cls.name!r}: {known} and {cls}; rename one")
    REGISTERED[cls.name] = cls
    return cls


def registry() -> dict[str, type[Drafter]]:
    """All drafter classes by name, those of entry points `hf_specplug.drafters` included."""
    _import_all()
    return dict(REGISTERED)


@cache
def _import_all() -> None:
    """Import all drafters, which registers them; once per process."""
    package = importlib.import_module("hf_specplug.drafters")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"hf_specplug.drafters.{module.name}")
    for entry in entry_points(group="hf_specplug.drafters"):
        entry.load()


RENAMED = {"luck": "gumbel"}
"""Names of drafters in earlier versions, in options and saved states, and their names now."""


def _current(name: str) -> str:
    """The present name of a drafter; an old one is accepted with a FutureWarning."""
    new = RENAMED.get(name, name)
    if new != name:
        warnings.warn(f"drafter {name!r} is called {new!r} now", FutureWarning, stacklevel=3)
    return new


def create(drafters: Iterable[str | Drafter] | str | Drafter) -> list[Drafter]:
    """Make drafters of names; drafter objects are taken as they are, and the order is kept.

    Raises:
        OptionError: a name is unknown or repeated, or something is neither a name nor a Drafter.

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
    """The layer whose hidden states the drafters need; None if none needs them.

    Raises:
        OptionError: they need those of different layers.
    """
    layers = {drafter.layer: drafter.name for drafter in drafters if "hidden" in drafter.needs}
    if len(layers) > 1:
        raise OptionError(f"drafters can look at one layer's hidden states together, not {layers}")
    return next(iter(layers), None)


MAX_DRAFTERS = 16
"""The number of bits in `DraftTree.sources`."""
