"""Given passages matched as text: where the text enters one, the rest of it is drafted.

A passage that is tokenized alone is cut differently at its borders than inside a text: ` {"name`
may begin with the token ` {"`, which no trie of `{"name` contains. Here the end of the text is
decoded and compared with the beginnings of all passages, character by character; what is left of a
passage is tokenized after the tokens that are already there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Frontier, Int32, Step
from hf_specplug.drafters.passage_index import PassageIndex
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.drafters.store_drafter import StoreDrafter
from hf_specplug.drafters.text_tail import TextCodec, TextTail
from hf_specplug.errors import OptionError
from hf_specplug.kernels.tree import PARENT, TOKEN

LENGTH_EDGES = (8, 16, 32, 64)
"""Characters of a passage that the path ends with: the rows of the evidence."""

COLUMNS = 2
"""Of the evidence: whether passages that begin alike go on in other ways, or not."""

LEAST_MATCH, LEAST_SHARED = 4, 16
"""Characters of a passage that the text must end with; and if several passages begin with them."""

MAX_STARTS = 32
"""Places where the text may have entered a passage; later ones are forgotten."""

MAX_TEXT = 4096
"""Characters of a passage that are compared; it is left when the text has said more."""

_FIRST_TOKENS = 256  # of a prompt that are decoded, from its end
_MOST_CHAINS = 4  # passages that are drafted at once
_REST = 128  # characters of a passage that are tokenized at once


@dataclass(frozen=True)
class _Chain:
    """The rest of a passage: its tokens, the characters said before, and those per token."""

    tokens: list[int]
    said: float
    rate: float


@register
class PassagesDrafter(StoreDrafter):
    """Proposes the rest of given passages that the text is in the middle of, as chains.

    It reads the texts of datastores that were built with `--given` and opened with a tokenizer, and
    finds the same entries as a search of the text's last characters for beginnings of passages.

    Evidence: the characters of the passage that the path ends with, and whether passages that begin
    alike go on differently.

    Args:
        stores, tokenizer: see `StoreDrafter`. Without a tokenizer nothing is matched.
        passages: further texts; they need the tokenizer.

    Raises:
        OptionError: passages are given without a tokenizer.

    Example:
        >>> PassagesDrafter(tokenizer=tokenizer, passages=["Licensed under the Apache License"])
        ... # doctest: +SKIP
    """

    name: ClassVar[str] = "passages"
    kinds: ClassVar[frozenset[str]] = frozenset({"phrases"})

    def __init__(
        self,
        stores: Iterable[str | os.PathLike[str] | Datastore] = (),
        tokenizer: Any = None,
        passages: Iterable[str] = (),
    ) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._index = PassageIndex(filter(_encodable, passages))
        if self._index.passages and tokenizer is None:
            raise OptionError(
                "passages are texts: matching them needs the model's tokenizer, tokenizer=..."
            )
        self._codec = None if tokenizer is None else TextCodec(tokenizer)
        self._forget(None)
        super().__init__(stores, tokenizer)

    def _forget(self, context: Context | None) -> None:
        """Begin a text, whose end is read when it is first needed."""
        self._context = context
        self._tail: TextTail | None = None
        self._text = ""
        self._starts: list[int] = []  # in `_text`, of what may be a passage: the longest first
        self._chains: list[_Chain] = []
        self._live: dict[int, tuple[list[_Chain], int]] = {}  # node: what goes on, after how many

    def reads(self, store: Datastore) -> bool:
        has_texts = any(getattr(shard, "has_strings", False) for shard in store.shards)
        return super().reads(store) and store.tokenizer is not None and has_texts

    def _opened(self, store: Datastore) -> None:
        if not self.reads(store):
            return
        if self._codec is None:
            self._codec = TextCodec(store.tokenizer)
        found = (string for shard in store.shards for string in shard.strings())
        self._index = PassageIndex([*self._index.passages, *filter(_encodable, found)])
        self._forget(self._context)

    def __setstate__(self, kept: dict[str, Any]) -> None:
        vars(self).update(kept)

    def for_another_call(self) -> PassagesDrafter:
        twin = self._sharing()
        twin.stores = list(self.stores)
        twin._forget(None)
        return twin

    def begin(self, context: Context) -> None:
        super().begin(context)
        self._forget(context)

    def observe(self, step: Step) -> None:
        new = step.emitted.tolist()
        self._chains = [
            _Chain(chain.tokens[len(new) :], chain.said + len(new) * chain.rate, chain.rate)
            for chain in self._chains
            if chain.tokens[: len(new)] == new and len(chain.tokens) > len(new)
        ]
        if self._tail is None:
            return
        text = self._tail.append(new) if min(new, default=0) >= 0 else None
        if text is None:
            self._tail = None
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        """Go on in the passages that the text was in, and enter those that begin in `text`."""
        places = [*self._starts, *range(len(self._text), len(self._text) + len(text))]
        said = self._text + text
        begins = self._index.begins
        places = [at for at in places if len(said) - at <= MAX_TEXT and begins(said[at:])]
        first = places[0] if places else len(said)
        self._text = said[first:]
        self._starts = [at - first for at in places[:MAX_STARTS]]

    def _ready(self, codec: TextCodec, context: Context) -> None:
        """Read the end of the text if that has not been done, and find the chains."""
        if self._tail is None:
            tokens = context.tokens[-min(context.unbroken, _FIRST_TOKENS) or len(context) :]
            self._tail = TextTail(codec, tokens.tolist())
            self._text, self._starts = "", []
            self._say(self._tail.text)
        if self._chains or self._tail.waiting:
            return
        for start in self._starts:
            said = len(self._text) - start
            found = self._index.continued(self._text[start:], _MOST_CHAINS)
            if said >= (LEAST_MATCH if len(found) < 2 else LEAST_SHARED):
                rests = [passage[said:] for passage in found]
                self._add(codec, self._tail.anchor, rests, said, context.vocab_size)
            if len(self._chains) >= _MOST_CHAINS:
                break

    def _add(
        self, codec: TextCodec, anchor: list[int], rests: list[str], said: int, vocab: int
    ) -> None:
        """Add the chains of what is left of passages, those that are not there yet."""
        encoded = codec.encode_after(anchor, [rest[:_REST] for rest in rests])
        for rest, tokens in zip(rests, encoded, strict=True):
            if len(rest) > _REST:
                tokens = tokens[:-1]  # it would have been cut elsewhere
            invalid = [place for place, token in enumerate(tokens) if not 0 <= token < vocab]
            tokens = tokens[: invalid[0]] if invalid else tokens
            if tokens and all(chain.tokens != tokens for chain in self._chains):
                self._chains.append(_Chain(tokens, said, len(rest[:_REST]) / len(tokens)))

    def expand(self, frontier: Frontier) -> Int32:
        rows: list[tuple[int, int, int]] = []
        if self._codec is None or self._context is None or not self._index.passages:
            return np.empty((0, 3), np.int32)
        for node in frontier.nodes.tolist():
            if node == 0:
                self._ready(self._codec, self._context)
                self._live = {0: (self._chains, 0)}
            else:
                self._follow(node, frontier.pool)
            chains, depth = self._live.get(node, ([], 0))
            said: dict[int, float] = {}
            for chain in chains:
                if len(chain.tokens) > depth:
                    said.setdefault(chain.tokens[depth], chain.said + depth * chain.rate)
            column = int(len(said) == 1)
            for token, length in said.items():
                row = int(np.searchsorted(LENGTH_EDGES, length, side="right"))
                rows.append((node, token, row * COLUMNS + column))
        return np.array(rows, np.int32).reshape(-1, 3)

    def _follow(self, node: int, pool: Int32) -> None:
        """Note which chains a node goes on with."""
        token = int(pool[node, TOKEN])
        chains, depth = self._live.get(int(pool[node, PARENT]), ([], 0))
        same = [each for each in chains if depth < len(each.tokens) and each.tokens[depth] == token]
        if same:
            self._live[node] = same, depth + 1


def _encodable(text: str) -> bool:
    """Whether it has no surrogates, which JSON can contain and tokenizers refuse."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
