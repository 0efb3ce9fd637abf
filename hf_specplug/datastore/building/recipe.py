"""Recipes: a corpus and build options in a TOML file.

    kind = "suffix"
    tokenizer = "NAME_OR_PATH"
    corpus = ["{stdlib}", "notes/*.md", "chats.jsonl"]
    text_field = "messages"
    max_tokens = 10_000_000
    dedup = true
    leave_out = "benchmark.jsonl"

Paths are relative to the recipe; `{stdlib}` is the Python standard library of the interpreter.
"""

from __future__ import annotations

import sysconfig
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_specplug.datastore.building.corpus import STDIN, Corpus, find
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.building.store_corpus import StoreCorpus, is_store
from hf_specplug.datastore.opening import HUB_SCHEME
from hf_specplug.errors import CorpusError

_KEYS = {
    "kind": str,
    "tokenizer": str,
    "corpus": list,
    "text_field": str,
    "max_tokens": int,
    "dedup": bool,
    "leave_out": str,
}


def load(sources: list[str], options: BuildOptions) -> tuple[Corpus, BuildOptions]:
    """Find the corpus of a build, and fill in the options that a recipe or a source store gives.

    Args:
        sources: one recipe, one datastore, or any number of files, folders and globs.
        options: options of the command; those that are set win over the recipe's, but for
            `text_field`.

    Returns:
        The corpus and the options.

    Raises:
        CorpusError: the recipe cannot be used, or a pattern matches nothing.
    """
    if len(sources) == 1 and sources[0].endswith(".toml") and Path(sources[0]).is_file():
        path = Path(sources[0])
        raw = _parse(path)
        places = [_place(str(each), path.parent) for each in raw.get("corpus", ())]
        if not places:
            raise CorpusError(f'{path} names no corpus: corpus = ["FILE", ...]')
        options = replace(
            options,
            kind=options.kind or raw.get("kind"),
            tokenizer=options.tokenizer or raw.get("tokenizer"),
            text_field=raw.get("text_field", options.text_field),
            max_tokens=options.max_tokens or raw.get("max_tokens", 0),
            dedup=options.dedup or raw.get("dedup", False),
            leave_out=options.leave_out or _optional_place(raw.get("leave_out"), path.parent),
        )
        return Corpus(find(places), options.text_field), options
    if is_store(sources):
        corpus = StoreCorpus(tuple(sources))
        tokenizer = options.tokenizer or corpus.store.manifest.tokenizer["name"]
        return corpus, replace(options, tokenizer=tokenizer)
    return Corpus(find(sources), options.text_field), options


def _place(text: str, folder: Path) -> str:
    if text == "{stdlib}":
        return sysconfig.get_paths()["stdlib"]
    if text == STDIN or text.startswith(HUB_SCHEME) or Path(text).is_absolute():
        return text
    return str(folder / text)


def _optional_place(text: str | None, folder: Path) -> str | None:
    return None if text is None else str(folder / text)


def _parse(path: Path) -> dict[str, Any]:
    try:
        toml = import_module("tomllib")
    except ImportError:  # Python 3.10
        toml = import_module("tomli")
    try:
        raw: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(f"{path} is not TOML: {error}") from error
    for key, value in raw.items():
        if key not in _KEYS:
            raise CorpusError(f"{path}: {key!r} is unknown; the keys are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or (_KEYS[key] is int and isinstance(value, bool)):
            raise CorpusError(f"{path}: {key} must be of type {_KEYS[key].__name__}, not {value!r}")
    return raw
