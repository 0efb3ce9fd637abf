"""The contract of a rival: a drafting method that gets what its design learns from."""

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
    """What a rival may be made from.

    Attributes:
        vocab_size: token ids are in [0, vocab_size).
        folder: an empty folder, for rivals that keep files.
        texts: documents to draft from, int32[n] token ids each; may be empty.
        stores: our datastores of the same documents.
    """

    vocab_size: int
    folder: Path
    texts: tuple[Int32, ...] = ()
    stores: tuple[Datastore, ...] = ()


class Rival(ABC):
    """A drafting method, with the state that it keeps from one request to the next.

    `draft` and `observe` are timed. `tree` and `rows` are not: they convert between the types of a
    package and those of a recording.
    """

    @abstractmethod
    def begin(self, prompt: Int32) -> None:
        """Start a request; `prompt`: int32[n] token ids."""

    @abstractmethod
    def draft(self, limit: int, depth: int) -> Any:
        """Draft at most `limit` tokens; the answer ends after `depth` more tokens."""

    def tree(self, draft: Any) -> Drawn:
        """Convert a draft to a tree: parents before children, no child twice."""
        drawn: Drawn = draft
        return drawn

    def rows(self, topk: TopK) -> Any:
        """Convert what the model found likely to the type that `observe` takes."""
        return topk

    @abstractmethod
    def observe(self, emitted: Int32, rows: Any) -> None:
        """Learn from a forward pass; the first one of a request is that over the prompt.

        Args:
            emitted: int32[k], the emitted token ids.
            rows: what `rows` returned for each input token: of the prompt its last tokens, later
                the last accepted token and the accepted draft tokens.
        """


class Plain(Rival):
    """Drafts nothing; the baseline."""

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
