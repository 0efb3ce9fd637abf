"""`specplug build --leave-out`: documents that contain given strings stay out of a datastore.

For benchmark prompts, which would make figures too good, and for secrets, which must not be shared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ahocorasick
import xxhash

from hf_specplug.datastore.building.corpus import Document
from hf_specplug.datastore.building.executors import tokenize
from hf_specplug.errors import CorpusError, RecordingError

_INDEXED = 64  # first characters of a string in the automaton; memory grows with them


class LeaveOut:
    """Finds the documents that contain at least one of some strings, character for character.

    An Aho-Corasick automaton finds the beginnings of all strings in one pass over a document; what
    begins like a string is then compared with the whole of it.

    Args:
        strings: the strings. Empty ones are ignored.
        tokenizer: the model's tokenizer; it decodes documents that are known as token ids only.

    Attributes:
        strings: the strings, sorted.
        fingerprint: a hash of the strings, 32 hexadecimal digits.

    Raises:
        CorpusError: there is no string.

    Example:
        >>> LeaveOut(["secret"]).matches("this is secretly done")
        True
    """

    def __init__(self, strings: Iterable[str], tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self.strings = known = sorted({string for string in strings if string})
        if not known:
            raise CorpusError("there is nothing to leave out: the list has no strings")
        digest = xxhash.xxh3_128()
        beginnings: dict[str, list[str]] = {}
        for string in known:
            digest.update(json.dumps(string).encode() + b"\n")
            beginnings.setdefault(string[:_INDEXED], []).append(string)
        self.fingerprint = str(digest.hexdigest())
        self._automaton = ahocorasick.Automaton()
        for beginning, whole in beginnings.items():
            self._automaton.add_word(beginning, (len(beginning), whole))
        self._automaton.make_automaton()

    def matches(self, document: Document) -> bool:
        """Whether a document, a text or its token ids, contains one of the strings."""
        if not isinstance(document, str):
            document = decoded(self._tokenizer, document)
        for last, (length, whole) in self._automaton.iter(document):
            begin = last + 1 - length
            if any(document.startswith(string, begin) for string in whole):
                return True
        return False

    def require_decoding(self) -> None:
        """Raise CorpusError unless the tokenizer gives back each of the strings exactly.

        Otherwise they might not be found in documents that are known as token ids only.
        """
        for string, row in zip(self.strings, tokenize(self._tokenizer, self.strings), strict=True):
            if (text := decoded(self._tokenizer, row)) != string:
                raise CorpusError(
                    f"the tokenizer turns {string[:40]!r} into {text[:40]!r}, so that it cannot be "
                    "found in token ids: leave it out of the corpus itself, built from its files"
                )


def decoded(tokenizer: Any, tokens: Any) -> str:
    """The text of token ids, int[n], as exactly as the tokenizer can give it."""
    text: str = tokenizer.decode(
        tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def read_strings(path: str, read_prompts: Callable[[str], Iterable[str]]) -> list[str]:
    """The strings of a file for `--leave-out`.

    Args:
        path: a JSON list of strings (.json), prompts (.jsonl, see `hf.prompts.read_prompts`), or a
            text file with one string per line, without the spaces around it.
        read_prompts: yields the prompts of a file.

    Raises:
        CorpusError: the file cannot be read, or is not what its name says.
    """
    try:
        if path.endswith((".jsonl", ".ndjson")):
            return list(read_prompts(path))
        text = Path(path).read_text(encoding="utf-8")
        if not path.endswith(".json"):
            return [line.strip() for line in text.split("\n")]
        strings = json.loads(text)
    except (OSError, ValueError, RecursionError, RecordingError) as error:
        raise CorpusError(f"{path} cannot be read as strings to leave out: {error}") from error
    if not isinstance(strings, list) or not all(isinstance(each, str) for each in strings):
        raise CorpusError(f'{path} must be a JSON list of strings: ["...", "..."]')
    return strings
