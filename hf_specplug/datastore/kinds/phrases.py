"""Phrases: token sequences that occur repeatedly, with their number of occurrences.

Two kinds of datastore keep them in the same arrays. "phrases" holds the repeated passages of a
corpus, of any length: licence headers, templates, skeletons of tool calls; or texts that were given
as phrases. "ngram" holds the most common 5-grams. It is the model-dependent database of Hierarchy
Drafting (Cho et al. 2025, arXiv 2502.05609), meant to be built from the model's own
answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.kinds.contract import NO_SETTINGS, Arrays, Index, require, token_dtype
from hf_specplug.datastore.kinds.counting import occurrences
from hf_specplug.datastore.kinds.registry import register_kind
from hf_specplug.datastore.kinds.strings import STRINGS, pack_strings, unpack_strings
from hf_specplug.errors import StoreError
from hf_specplug.kernels import repeats as kernels
from hf_specplug.kernels.phrases import MAX_PHRASE
from hf_specplug.kernels.suffix import suffix_array

MIN_TOKENS = 6
"""Fewest tokens of a phrase that is mined from a corpus."""

MIN_COUNT = 4
"""Fewest occurrences of a phrase that is mined from a corpus."""

MAX_COVERED = 0.8
"""A phrase is dropped if a phrase one token longer has at least this share of its occurrences."""

PIECE_OVERLAP = 8
"""Tokens shared by consecutive pieces of a phrase longer than `MAX_PHRASE`."""

GIVEN_COUNT = 1 << 20
"""What a given phrase counted for each time in stores of version 0.1, which had no `given`."""

NGRAM_TOKENS = 5
"""Tokens of an n-gram, as in the paper."""

_MAX_COUNT = (1 << 32) - 1


class _Phrases(Index):
    """Distinct phrases, sorted by their tokens.

    - `tokens` uint16 or uint32 by vocabulary, `offsets` uint32[n + 1]: phrase i is
      `tokens[offsets[i] : offsets[i + 1]]`;
    - `counts` uint32[n]: occurrences of each phrase in the whole corpus.

    At most `most` phrases are kept: those with the largest length times count. A build mines each
    shard alone, joins what it found, and then counts these phrases in all texts: what is rare in
    each shard is not lost.
    """

    array_names: ClassVar[tuple[str, ...]] = ("tokens", "offsets", "counts")
    join_after_build: ClassVar[bool] = True
    recounts: ClassVar[bool] = True
    most: ClassVar[int]
    lengths: ClassVar[tuple[int, int]]

    @classmethod
    def build(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        text = tokens.astype(np.int32)
        suffixes = suffix_array(text, vocab + 1)
        shared = kernels.common_prefixes(text, suffixes, vocab)
        return cls._kept(cls._found(text, suffixes, shared, vocab), vocab)

    @classmethod
    @abstractmethod
    def _found(cls, text: Any, suffixes: Any, shared: Any, vocab: int) -> Counter[bytes]:
        """The phrases of a text, as `_key` encodes them, with their counts."""

    @classmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        counts: Counter[bytes] = Counter()
        for part in parts:
            for phrase, count in zip(part.phrases(), part.counts.tolist(), strict=True):
                counts[_key(phrase)] += count
        return cls._kept(counts, vocab, frozenset().union(*(part.given() for part in parts)))

    @classmethod
    def recount(
        cls,
        arrays: Arrays,
        texts: Iterable[NDArray[Any]],
        vocab: int,
        progress: Callable[[int], None],
    ) -> Arrays:
        index = cls(arrays, vocab)
        phrases = list(index.phrases())
        counts = occurrences(phrases, texts, progress)
        keys = (_key(phrase) for phrase in phrases)
        found = {key: count for key, count in zip(keys, counts.tolist(), strict=True) if count}
        return cls._kept(Counter(found), vocab, index.given())

    @classmethod
    def _kept(cls, counts: Counter[bytes], vocab: int, given: Set[bytes] = frozenset()) -> Arrays:
        """The arrays of the phrases that are kept, those that were given before others."""

        def rank(phrase: bytes) -> tuple[bool, int, bytes]:
            return phrase not in given, -len(phrase) * counts[phrase], phrase

        kept = sorted(sorted(counts, key=rank)[: cls.most])
        lengths = [0, *(len(phrase) // 4 for phrase in kept)]
        arrays = {
            "tokens": np.frombuffer(b"".join(kept), ">u4").astype(token_dtype(vocab)),
            "offsets": np.cumsum(lengths).astype(np.uint32),
            "counts": np.array([min(counts[each], _MAX_COUNT) for each in kept], np.uint32),
        }
        if given:
            arrays["given"] = np.array([phrase in given for phrase in kept], np.uint8)
        return arrays

    def __init__(self, arrays: Arrays, vocab: int) -> None:
        require(arrays, tokens=token_dtype(vocab), offsets=np.uint32, counts=np.uint32)
        self.tokens, self.offsets, self.counts = (arrays[name] for name in self.array_names)
        if len(self.offsets) != len(self.counts) + 1 or len(self.counts) > self.most:
            raise StoreError(
                f"a shard has {len(self.offsets):,} offsets and {len(self.counts):,} counts; it "
                f"must have one offset more than counts, and at most {self.most:,} counts"
            )

    def phrases(self) -> Iterator[NDArray[Any]]:
        """The tokens of each phrase, at most `MAX_PHRASE` even if the offsets are damaged."""
        tokens, offsets = self.tokens.view(np.ndarray), self.offsets.tolist()
        for begin, end in pairwise(offsets):
            yield tokens[begin : min(end, begin + MAX_PHRASE)]

    def given(self) -> set[bytes]:
        """The phrases that were given rather than found, as `_key` encodes them."""
        return set()

    def check(self, vocab: int) -> None:
        least, most = self.lengths
        lengths = np.diff(self.offsets.astype(np.int64))
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens):
            raise StoreError("`offsets` does not divide the tokens")
        if len(lengths) and not (least <= lengths.min() and lengths.max() <= most):
            raise StoreError(f"a phrase does not have {least} to {most} tokens")
        if len(self.tokens) and int(self.tokens.max()) >= vocab:
            raise StoreError("a token id is outside the vocabulary")
        keys = [_key(phrase) for phrase in self.phrases()]
        if any(one >= other for one, other in pairwise(keys)):
            raise StoreError("its phrases are not sorted")
        if not self.counts.all():
            raise StoreError("a phrase has no occurrence")


@register_kind
class PhraseIndex(_Phrases):
    """The maximal repeats of a corpus, except those of which a longer one occurs almost as often.

    A repeat of more than `MAX_PHRASE` tokens is kept in pieces that overlap. Phrases that were
    given are kept whatever their counts. A store that has any has two further arrays:

    - `given` uint8[n]: whether each phrase was given;
    - `strings` uint8[_]: the given texts (see `kinds.strings`), to be matched as text.

    Example:
        in a corpus of files that all begin with the same licence header, the header is a phrase.
        Its first line is not one, unless it also occurs elsewhere.
    """

    kind: ClassVar[str] = "phrases"
    summary: ClassVar[str] = "long passages that repeat, or with --given each document as one"
    accepts_given: ClassVar[bool] = True
    optional_arrays: ClassVar[tuple[str, ...]] = ("given", STRINGS)
    verify_on_open: ClassVar[tuple[str, ...]] = (STRINGS,)
    most: ClassVar[int] = 50_000
    lengths: ClassVar[tuple[int, int]] = (2, MAX_PHRASE)

    def __init__(self, arrays: Arrays, vocab: int) -> None:
        super().__init__(arrays, vocab)
        self._strings = arrays.get(STRINGS)
        if self._strings is not None:
            require(arrays, strings=np.uint8)
        if "given" in arrays:
            require(arrays, given=np.uint8)
            self._given = arrays["given"] != 0
        else:  # version 0.1
            self._given = self.counts >= GIVEN_COUNT
            times, mined = np.divmod(self.counts, GIVEN_COUNT)
            self.counts = np.where(self._given, times + mined, self.counts).astype(np.uint32)
        if len(self._given) != len(self.counts):
            raise StoreError(f"{len(self._given):,} marks of {len(self.counts):,} phrases")

    def given(self) -> set[bytes]:
        pairs = zip(self.phrases(), self._given.tolist(), strict=True)
        return {_key(phrase) for phrase, is_given in pairs if is_given}

    @property
    def has_strings(self) -> bool:
        """Whether it has the texts of given phrases."""
        return self._strings is not None

    def strings(self) -> list[str]:
        """The texts of given phrases. Raises StoreError if they are damaged."""
        return [] if self._strings is None else unpack_strings(self._strings)

    def check(self, vocab: int) -> None:
        super().check(vocab)
        self.strings()

    @classmethod
    def _found(cls, text: Any, suffixes: Any, shared: Any, vocab: int) -> Counter[bytes]:
        found = np.empty((len(text), 3), np.int32)
        found = found[
            : kernels.repeats(
                text, suffixes, shared, vocab, MIN_TOKENS, MIN_COUNT, MAX_COVERED, found
            )
        ]
        saved = found[:, 1].clip(max=MAX_PHRASE).astype(np.int64) * found[:, 2]
        counts: Counter[bytes] = Counter()
        for position, length, count in found[np.argsort(-saved, kind="stable")].tolist():
            for piece in _pieces(text[position : position + length]):
                counts[_key(piece)] += count
            if len(counts) >= cls.most:
                break
        return counts

    @classmethod
    def build_given(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        counts: Counter[bytes] = Counter()
        for document in np.split(tokens, np.flatnonzero(tokens == vocab) + 1):
            for piece in _pieces(document[document < vocab]):
                if len(piece) >= cls.lengths[0]:
                    counts[_key(piece)] += 1
        return cls._kept(counts, vocab, counts.keys())

    @classmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        strings = [string for part in parts for string in part.strings()][: cls.most]
        packed = {STRINGS: pack_strings(strings)} if strings else {}
        return super().join(parts, vocab, settings) | packed

    @classmethod
    def recount(
        cls,
        arrays: Arrays,
        texts: Iterable[NDArray[Any]],
        vocab: int,
        progress: Callable[[int], None],
    ) -> Arrays:
        kept = {STRINGS: arrays[STRINGS]} if STRINGS in arrays else {}
        return super().recount(arrays, texts, vocab, progress) | kept


@register_kind
class NgramIndex(_Phrases):
    """The most common 5-grams of a corpus, as many as in the paper."""

    kind: ClassVar[str] = "ngram"
    summary: ClassVar[str] = "the most common 5-grams, best of --from-model-outputs"
    most: ClassVar[int] = 100_000
    lengths: ClassVar[tuple[int, int]] = (NGRAM_TOKENS, NGRAM_TOKENS)

    @classmethod
    def _found(cls, text: Any, suffixes: Any, shared: Any, vocab: int) -> Counter[bytes]:
        found = np.empty((len(text), 2), np.int32)
        found = found[: kernels.grams(text, suffixes, shared, vocab, NGRAM_TOKENS, found)]
        best = found[np.argsort(-found[:, 1], kind="stable")[: cls.most]]
        return Counter(
            {_key(text[place : place + NGRAM_TOKENS]): count for place, count in best.tolist()}
        )


def _key(tokens: NDArray[Any]) -> bytes:
    """Bytes whose order is that of the tokens."""
    return tokens.astype(">u4").tobytes()


def _pieces(tokens: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A phrase, in overlapping pieces if it has more than `MAX_PHRASE` tokens."""
    for begin in range(0, max(1, len(tokens) - PIECE_OVERLAP), MAX_PHRASE - PIECE_OVERLAP):
        yield tokens[begin : begin + MAX_PHRASE]
