"""Passages of text by how they begin: an `ahocorasick.Automaton` of their first characters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice
from typing import Any

import ahocorasick

DEPTH = 64
"""First characters of a passage that are in the automaton; the rest is compared."""


class PassageIndex:
    """Finds the passages that begin with a text. It does not change; copies share it.

    Args:
        passages: the texts.

    Attributes:
        passages: each once, sorted.

    Example:
        >>> index = PassageIndex(["import numpy as np", "import os"])
        >>> index.begins("import "), index.begins("imports"), index.continued("import n", 9)
        (True, False, ['import numpy as np'])
    """

    def __init__(self, passages: Iterable[str]) -> None:
        self.passages = sorted(set(passages) - {""})
        alike: dict[str, list[str]] = {}
        for passage in self.passages:
            alike.setdefault(passage[:DEPTH], []).append(passage)
        self._automaton = ahocorasick.Automaton()
        for beginning, same in alike.items():
            self._automaton.add_word(beginning, same)

    def __deepcopy__(self, memo: Any) -> PassageIndex:
        return self

    def __reduce__(self) -> tuple[type[PassageIndex], tuple[list[str]]]:
        return PassageIndex, (self.passages,)

    def begins(self, text: str) -> bool:
        """Whether a passage begins with this text, or is equal to it."""
        if len(text) <= DEPTH:
            return bool(self._automaton.match(text))
        return bool(_with_prefix(self._automaton.get(text[:DEPTH], ()), text, 1))

    def continued(self, text: str, most: int) -> list[str]:
        """At most `most` passages that begin with this text and go on after it."""
        if len(text) > DEPTH:
            found = _with_prefix(self._automaton.get(text[:DEPTH], ()), text, most + 1)
        else:
            alike = self._automaton.values(text)
            found = list(islice((each for same in alike for each in same), most + 1))
        return [passage for passage in found if len(passage) > len(text)][:most]


def _with_prefix(passages: list[str], prefix: str, most: int) -> list[str]:
    """The first passages with a prefix, from a sorted list."""
    begin = bisect_left(passages, prefix)
    return [each for each in passages[begin : begin + most] if each.startswith(prefix)]
