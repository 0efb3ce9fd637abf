"""The methods that can be compared, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from hf_specplug.errors import OptionError
from tests.benchmarks.rivals.base import Given, Rival

OURS = ["context", "recycling", "stand"]
STORED = ["rest", "trigram", "phrases"]


@dataclass(frozen=True)
class Method:
    """A rival and its settings.

    Attributes:
        module: its file in this folder.
        kind: its class in that file.
        settings: arguments of the class.
        texts: whether it needs texts, and is skipped without them.
        nodes: a fixed number of tokens per forward pass; None for the size asked for.
        install: how to install what it needs.
    """

    module: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    texts: bool = False
    nodes: int | None = None
    install: str = ""

    def make(self, given: Given) -> Rival:
        """A new rival.

        Raises:
            ImportError: its package is not installed.
        """
        module = import_module(f"tests.benchmarks.rivals.{self.module}")
        rival: Rival = getattr(module, self.kind)(given, **self.settings)
        return rival


def _ours(*drafters: str, texts: bool = False) -> Method:
    return Method("specplug", "Ours", {"drafters": list(drafters)}, texts)


def _suffix(texts: bool = False, **options: Any) -> Method:
    settings = {"texts": texts, **options}
    return Method("suffix_decoding", "SuffixDecoding", settings, texts, None, _SCRIPT)


def _dejavuu(method: str, texts: bool = False) -> Method:
    return Method("dejavuu", "Dejavuu", {"method": method}, texts, None, _SCRIPT)


_SCRIPT = "tests/benchmarks/rivals/install.sh FOLDER, then PYTHONPATH=FOLDER"
_WIDE: dict[str, Any] = {"use_tree_spec": True, "max_spec_offset": 64.0, "min_token_prob": 0.001}

METHODS: dict[str, Method] = {
    "plain": Method("base", "Plain", nodes=1),
    "specplug": _ours(*OURS),
    "specplug+texts": _ours(*OURS, *STORED, texts=True),
    **{name: _ours(name) for name in OURS},
    **{name: _ours(name, texts=True) for name in STORED},
    "prompt-lookup": Method("prompt_lookup", "PromptLookup", {"ngram": 2, "tokens": 10}, nodes=11),
    "prompt-lookup-long": Method("prompt_lookup", "PromptLookup", {"ngram": 3}),
    "aded": Method("aded", "Aded", texts=True, install="pip install draftretriever"),
    "suffix-path": _suffix(),
    "suffix-path+texts": _suffix(texts=True),
    "suffix-tree": _suffix(use_tree_spec=True),
    "suffix-tree+texts": _suffix(texts=True, use_tree_spec=True),
    "suffix-wide": _suffix(**_WIDE),
    "suffix-wide+texts": _suffix(texts=True, **_WIDE),
    "dejavuu-recycling": _dejavuu("token_recycling"),
    "dejavuu-stand": _dejavuu("stand"),
    "dejavuu-lookahead": _dejavuu("lookahead"),
    "dejavuu-merge": _dejavuu("suffix_recycle_merge"),
    "dejavuu-sam": _dejavuu("sam_decoding", texts=True),
}


def chosen(names: Sequence[str]) -> dict[str, Method]:
    """The methods of these names; all if there are none.

    Raises:
        OptionError: a name that is not known.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise OptionError(f"no method is called {unknown[0]!r}; there are {', '.join(METHODS)}")
    return {name: METHODS[name] for name in names or METHODS}


def missing(method: Method, given: Given) -> str | None:
    """Why a method must be left out; None if it can be made."""
    if method.texts and not given.texts:
        return "needs --stores-texts FILE.jsonl"
    try:
        import_module(f"tests.benchmarks.rivals.{method.module}")
    except ImportError as error:
        return f"{error}; {method.install or 'is it installed?'}"
    return None
