"""What a rival is: something that drafts, told of a request what its design learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Int32, TopK

Drawn = tuple[Iterable[int], Iterable[int]]
"""(tokens, index of each token's parent, -1 = the last accepted token) of a draft tree."""


@dataclass(frozen=True)
class Given:
    """What every rival may be made of.

    Attributes:
        vocab_size: ids are in [0, vocab_size).
        folder: an empty one, for those that keep files.
        texts: int32[n] each, documents to draft from, and
        stores: our datastores of the same documents; both are empty if there are none.
    """

    vocab_size: int
    folder: Path
    texts: tuple[Int32, ...] = ()
    stores: tuple[Datastore, ...] = ()


class Rival(ABC):
    """A method of drafting, with all that it remembers from one request to the next.

    `draft` and `observe` are timed. `tree` and `rows` are not: they translate between what a
    package's own decoding loop holds and what a recording does.
    """

    @abstractmethod
    def begin(self, prompt: Int32) -> None:
        """A new request: int32[n], its prompt."""

    @abstractmethod
    def draft(self, limit: int, depth: int) -> Any:
        """What may come next: `limit` tokens at most; the answer ends `depth` tokens later."""

    def tree(self, draft: Any) -> Drawn:
        """What `draft` returned as a tree, parents before children, no child named twice."""
        drawn: Drawn = draft
        return drawn

    def rows(self, topk: TopK) -> Any:
        """What the target found likely, in the form that `observe` takes."""
        return topk

    @abstractmethod
    def observe(self, emitted: Int32, rows: Any) -> None:
        """Learn from a forward pass; the first of a request is the one over the prompt.

        Args:
            emitted: int32[k], the tokens that were added to the text.
            rows: what `rows` made of what the target found likely after each token that was fed:
                of the prompt its last ones, later the last accepted token and accepted drafts.
        """


class Plain(Rival):
    """Drafts nothing: what the others are measured against."""

    def __init__(self, given: Given) -> None:
        pass

    def begin(self, prompt: Int32) -> None:
        pass

    def draft(self, limit: int, depth: int) -> Drawn:
        return [], []

    def observe(self, emitted: Int32, rows: object) -> None:
        pass


def chain(tokens: Iterable[int]) -> Drawn:
    """A single path.

    Example:
        >>> chain([7, 8])
        ([7, 8], [-1, 0])
    """
    path = list(tokens)
    return path, list(range(-1, len(path) - 1))


def merged(tokens: Iterable[int], parents: Iterable[int]) -> Drawn:
    """A tree in which children of the same token, which some packages make, have become one.

    Example:
        >>> merged([7, 8, 7, 9], [-1, 0, -1, 2])
        ([7, 8, 9], [-1, 0, 0])
    """
    places: list[int] = []
    nodes: dict[tuple[int, int], int] = {}
    for token, parent in zip(tokens, parents, strict=True):
        above = -1 if parent < 0 else places[parent]
        places.append(nodes.setdefault((above, token), len(nodes)))
    return [token for _, token in nodes], [parent for parent, _ in nodes]


def tail(text: Int32, emitted: Int32, length: int) -> Int32:
    """The last `length` tokens of a text that has grown."""
    return np.ascontiguousarray(np.concatenate((text, emitted))[-length:])
