"""Ways to decode, by the names that `specplug bench --methods` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import give, readers
from hf_specplug.errors import OptionError
from hf_specplug.plug import DEFAULT_DRAFTERS, SpecPlug

PLAIN = "plain"
STATIC = {"cache_implementation": "static"}
_HELP = (
    "methods are plain, prompt-lookup[:TOKENS], static and specplug[:-DRAFTER][:+DRAFTER]"
    "[:nodes=N][:pack=no][:static][:published=PAPER], with commas"
)


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        name: as it was asked for.
        settings: of `generate`.
        plug: what drafts, if it is one of ours.
        drafts: whether a forward pass may give more than one token.
    """

    name: str
    settings: dict[str, Any]
    plug: SpecPlug | None = None
    drafts: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `generate`, the plug included."""
        return {**self.settings, "assistant": self.plug}


def parse(text: str, stores: Sequence[Datastore] = ()) -> list[Method]:
    """Methods by their names, plain decoding first, as all are compared with it.

    Args:
        stores: what each plug drafts from, besides.

    Raises:
        OptionError: a name that is none; the message says which there are.

    Example:
        >>> [method.name for method in parse("specplug:-stand,prompt-lookup")]
        ['plain', 'specplug:-stand', 'prompt-lookup']
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    return [_method(name, stores) for name in dict.fromkeys([PLAIN, *names])]


def _method(name: str, stores: Sequence[Datastore]) -> Method:
    base, *changes = name.split(":")
    if base == PLAIN and not changes:
        return Method(name, {})
    if base == "static" and not changes:
        return Method(name, STATIC)
    if base == "prompt-lookup" and all(change.isdecimal() and int(change) for change in changes):
        tokens = int(changes[-1]) if changes else 10
        return Method(name, {"prompt_lookup_num_tokens": tokens}, drafts=True)
    if base == "specplug":
        return _plugged(name, changes, stores)
    raise OptionError(f"{_HELP}; not {name!r}")


def _plugged(name: str, changes: list[str], stores: Sequence[Datastore]) -> Method:
    drafters = [*DEFAULT_DRAFTERS, *readers(stores)]
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        if change.startswith("-"):
            if change[1:] not in drafters:
                raise OptionError(f"{name!r}: it drafts with {', '.join(drafters)}; {_HELP}")
            drafters.remove(change[1:])
        elif change.startswith("+"):
            drafters.append(change[1:])
        elif key == "nodes" and value.isdecimal():
            options["nodes"] = int(value)
        elif change == "pack=no":
            options["pack"] = False
        elif key == "published":
            options["published"] = value
        elif change == "static":
            settings = STATIC
        else:
            raise OptionError(f"{_HELP}; not {change!r} in {name!r}")
    made = create(drafters)
    give(stores, made)
    return Method(name, settings, SpecPlug(drafters=made, **options), drafts=True)
