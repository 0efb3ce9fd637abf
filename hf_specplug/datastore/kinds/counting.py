"""Exact numbers of occurrences of token sequences in long texts.

An Aho-Corasick automaton of characters (pyahocorasick) counts: each token id becomes two
characters, the first at least 256 and the second below. A match therefore begins at a token, and
nodes have few children, which is faster than one character per id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

import ahocorasick
import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

MAX_ID = (0xD800 - 256) * 256 - 1
"""The largest id whose first character lies below the surrogates, which no text may contain."""

PART_TOKENS = 1 << 16
"""Tokens that are searched at once."""


def as_text(tokens: NDArray[Any]) -> str:
    """Token ids, int[n] up to `MAX_ID`, as two characters each.

    Example:
        >>> as_text(np.array([3, 513])) == chr(256) + chr(3) + chr(258) + chr(1)
        True
    """
    ids = tokens.astype(np.uint32)
    letters = np.empty((len(ids), 2), "<u4")
    letters[:, 0], letters[:, 1] = 256 + (ids >> 8), ids & 255
    return letters.tobytes().decode("utf-32-le")


def occurrences(
    phrases: Sequence[NDArray[Any]],
    texts: Iterable[NDArray[Any]],
    progress: Callable[[int], None] = lambda tokens: None,
) -> NDArray[np.int64]:
    """How often each phrase occurs in some texts, occurrences that overlap included.

    Memory is bounded by the phrases; the texts may be memory-mapped.

    Args:
        phrases: distinct sequences of ids, int[_] each, none of them empty.
        texts: int[_] each; a match may go on from one to the next.
        progress: called with the tokens that have been searched since the last call.

    Returns:
        int64[len(phrases)]

    Raises:
        StoreError: an id is above `MAX_ID`.

    Example:
        >>> occurrences([np.array([7, 7])], [np.array([7, 7, 7])]).tolist()
        [2]
    """
    automaton = ahocorasick.Automaton()
    for number, phrase in enumerate(phrases):
        automaton.add_word(_checked(phrase), number)
    found: Counter[int] = Counter()
    counts = np.zeros(len(phrases), np.int64)
    if not len(phrases):
        return counts
    automaton.make_automaton()
    matches = automaton.iter("")
    for text in texts:
        for begin in range(0, len(text), PART_TOKENS):
            part = text[begin : begin + PART_TOKENS]
            matches.set(_checked(part))  # goes on from the state after the last part
            found.update(map(itemgetter(1), matches))
            progress(len(part))
    counts[list(found)] = list(found.values())
    return counts


def _checked(tokens: NDArray[Any]) -> str:
    if len(tokens) and int(tokens.max()) > MAX_ID:
        raise StoreError(f"phrases are counted for token ids up to {MAX_ID:,}, not more")
    return as_text(tokens)
