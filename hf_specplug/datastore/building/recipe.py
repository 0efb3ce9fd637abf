"""Recipes: a corpus and how to read it, in a TOML file.

    kind = "suffix"
    tokenizer = "NAME_OR_PATH"
    corpus = ["{stdlib}", "notes/*.md", "chats.jsonl"]
    text_field = "messages"
    max_tokens = 10_000_000
    dedup = true

Paths are relative to the recipe; `{stdlib}` is the Python standard library of the interpreter.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_specplug.datastore.building.corpus import HUB, STDIN, Corpus, find
from hf_specplug.datastore.building.store_corpus import StoreCorpus, is_store
from hf_specplug.errors import CorpusError

_KEYS = {
    "kind": str,
    "tokenizer": str,
    "corpus": list,
    "text_field": str,
    "max_tokens": int,
    "dedup": bool,
}


@dataclass(frozen=True)
class Recipe:
    """What to build a store of."""

    corpus: Corpus
    max_tokens: int
    dedup: bool
    tokenizer: str | None = None
    kind: str = "suffix"


def load(
    given: list[str], text_field: str = "text", max_tokens: int = 0, dedup: bool = False
) -> Recipe:
    """Read what a command was given: one recipe, or paths, folders and globs.

    Raises:
        CorpusError: the recipe cannot be used, or nothing is found.
    """
    if len(given) == 1 and given[0].endswith(".toml") and Path(given[0]).is_file():
        path = Path(given[0])
        raw = _parse(path)
        places = [_place(str(each), path.parent) for each in raw.get("corpus", ())]
        if not places:
            raise CorpusError(f'{path} names no corpus: corpus = ["FILE", ...]')
        return Recipe(
            Corpus(find(places), raw.get("text_field", text_field)),
            max_tokens or raw.get("max_tokens", 0),
            dedup or raw.get("dedup", False),
            raw.get("tokenizer"),
            raw.get("kind", "suffix"),
        )
    if is_store(given):
        corpus = StoreCorpus(tuple(given))
        return Recipe(corpus, max_tokens, dedup, corpus.store.manifest.tokenizer["name"])
    return Recipe(Corpus(find(given), text_field), max_tokens, dedup)


def _place(text: str, folder: Path) -> str:
    if text == "{stdlib}":
        return sysconfig.get_paths()["stdlib"]
    if text == STDIN or text.startswith(HUB) or Path(text).is_absolute():
        return text
    return str(folder / text)


def _parse(path: Path) -> dict[str, Any]:
    try:
        toml = import_module("tomllib")
    except ImportError:  # Python 3.10
        toml = import_module("tomli")
    try:
        raw: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(f"{path} is no TOML: {error}") from error
    for key, value in raw.items():
        if key not in _KEYS:
            raise CorpusError(f"{path}: {key!r} is unknown; there are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or (_KEYS[key] is int and isinstance(value, bool)):
            raise CorpusError(f"{path}: {key} is of type {_KEYS[key].__name__}, not {value!r}")
    return raw
