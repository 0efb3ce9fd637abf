"""The methods that `specplug bench --methods` can compare: a registry, one entry for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_specplug.errors import OptionError

if TYPE_CHECKING:  # the command line shows `usage` without loading torch
    from hf_specplug.datastore.store import Datastore
    from hf_specplug.plug import SpecPlug

PLAIN = "plain"
"""The method that all others are compared with."""

DEFAULT = "plain,prompt-lookup,static,specplug"

_STATIC = {"cache_implementation": "static"}


@dataclass(frozen=True)
class Method:
    """One way to decode.

    Attributes:
        name: as it was asked for.
        settings: further arguments of `generate`.
        plug: what drafts, if it is a plug.
        drafts: whether a forward pass may emit more than one token.
    """

    name: str
    settings: dict[str, Any]
    plug: SpecPlug | None = None
    drafts: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `generate`, the plug included."""
        return {**self.settings, "assistant": self.plug}


Builder = Callable[[str, list[str], "Sequence[Datastore]"], Method]
"""Makes a method of its whole name, the options in it, and the datastores to draft from."""

METHODS: dict[str, tuple[str, Builder]] = {}
"""By name: how the method is written, and what makes it."""


def method(usage: str) -> Callable[[Builder], Builder]:
    """Register a builder under the name that `usage` begins with.

    Example:
        >>> @method("sampled[:SEED]")  # doctest: +SKIP
        ... def _sampled(name, options, stores):
        ...     return Method(name, {"do_sample": True})
    """
    name = usage.replace("[", " ").split()[0]

    def add(builder: Builder) -> Builder:
        METHODS[name] = usage, builder
        return builder

    return add


def usage() -> str:
    """How methods are written."""
    *others, last = (written for written, _ in METHODS.values())
    return f"{', '.join(others)} and {last}, with commas"


def parse(text: str, stores: Sequence[Datastore] = ()) -> list[Method]:
    """Make methods by their names; plain decoding is added in front.

    Args:
        text: names with commas, see `usage`.
        stores: datastores that plugs draft from.

    Raises:
        OptionError: an unknown method or option.

    Example:
        >>> [method.name for method in parse("specplug:-stand,prompt-lookup")]
        ['plain', 'specplug:-stand', 'prompt-lookup']
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    return [make(name, stores) for name in dict.fromkeys([PLAIN, *names])]


def make(name: str, stores: Sequence[Datastore] = ()) -> Method:
    """Make one method by its name.

    Raises:
        OptionError: an unknown method or option.
    """
    base, *options = name.split(":")
    if base not in METHODS:
        raise _unknown(name)
    return METHODS[base][1](name, options, stores)


def _unknown(name: str, option: str | None = None) -> OptionError:
    what = repr(name) if option is None else f"{option!r} in {name!r}"
    return OptionError(f"methods are {usage()}; not {what}")


@method("plain")
def _plain(name: str, options: list[str], stores: Sequence[Datastore]) -> Method:
    if options:
        raise _unknown(name)
    return Method(name, {})


@method("prompt-lookup[:TOKENS]")
def _prompt_lookup(name: str, options: list[str], stores: Sequence[Datastore]) -> Method:
    if not all(option.isdecimal() and int(option) for option in options):
        raise _unknown(name)
    tokens = int(options[-1]) if options else 10
    return Method(name, {"prompt_lookup_num_tokens": tokens}, drafts=True)


@method("static")
def _static(name: str, options: list[str], stores: Sequence[Datastore]) -> Method:
    if options:
        raise _unknown(name)
    return Method(name, _STATIC)


@method(
    "specplug (with any of :-DRAFTER :+DRAFTER :nodes=N :pack=no :static :eager :compiled "
    ":published=PAPER)"
)
def _specplug(name: str, options: list[str], stores: Sequence[Datastore]) -> Method:
    from transformers import CompileConfig

    from hf_specplug.drafters.store_drafter import readers
    from hf_specplug.hf.compiling import compiled_everywhere
    from hf_specplug.plug import DEFAULT_DRAFTERS, SpecPlug
    from hf_specplug.replay.compare import reading

    drafters = [*DEFAULT_DRAFTERS, *readers(stores)]
    arguments: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if option.startswith("-") and option[1:] in drafters:
            drafters.remove(option[1:])
        elif option.startswith("-"):
            raise OptionError(f"{name!r} drafts with {', '.join(drafters)}, not {option[1:]!r}")
        elif option.startswith("+"):
            drafters.append(option[1:])
        elif key == "nodes" and value.isdecimal():
            arguments["nodes"] = int(value)
        elif option == "pack=no":
            arguments["pack"] = False
        elif key == "published":
            arguments["published"] = value
        elif option == "static":
            settings |= _STATIC
        elif option == "eager":
            settings["disable_compile"] = True
        elif option == "compiled":
            settings["compile_config"] = compiled_everywhere(CompileConfig())
        else:
            raise _unknown(name, option)
    plug = SpecPlug(drafters=reading(drafters, stores), **arguments)
    return Method(name, settings, plug, drafts=True)
