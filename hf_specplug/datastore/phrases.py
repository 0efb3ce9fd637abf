"""Phrases: token sequences that a model says again and again, with how often they were seen.

Two kinds of store keep them, in the same arrays. "phrases" holds what repeats in a corpus, however
long: licence headers, templates, the skeletons of tool calls; or texts that were given as phrases.
"ngram" holds the most common 5-grams, the model-dependent part of Hierarchy Drafting (Cho et al.
2025, arXiv 2502.05609), and is meant to be built from the model's own answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.index import NO_SETTINGS, Arrays, Index, require, token_dtype
from hf_specplug.errors import StoreError
from hf_specplug.kernels import repeats as kernels
from hf_specplug.kernels.phrases import MAX_PHRASE as LONGEST
from hf_specplug.kernels.suffix import suffix_array

LEAST = 6
"""Tokens of a phrase that is found in a corpus."""

OFTEN = 4
"""Times that it occurs."""

NEARLY = 0.8
"""A phrase is left out if one token more makes a phrase that occurs this share of its times."""

OVERLAP = 8
"""Tokens that two pieces of a phrase of more than `LONGEST` share: the one leads to the other."""

GIVEN = 1 << 20
"""A given phrase is worth so many occurrences: it is kept, and comes before what was found."""

GRAM = 5
"""Tokens of an n-gram, as in the paper."""

_MAX_COUNT = (1 << 32) - 1


class _Phrases(Index):
    """tokens uint16 or uint32 by vocabulary, offsets uint32[n + 1], counts uint32[n].

    Phrase i is `tokens[offsets[i] : offsets[i + 1]]` and was seen `counts[i]` times. Phrases are
    sorted by their tokens, none is there twice, and there are `most` at most: those that save most,
    by length times count.
    """

    names: ClassVar[tuple[str, ...]] = ("tokens", "offsets", "counts")
    joins_all: ClassVar[bool] = True
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
        """Phrases of a text with their counts; a phrase as `_key` has it."""

    @classmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        counts: Counter[bytes] = Counter()
        for part in parts:
            for phrase, count in zip(part.phrases(), part.counts.tolist(), strict=True):
                counts[_key(phrase)] += count
        return cls._kept(counts, vocab)

    @classmethod
    def _kept(cls, counts: Counter[bytes], vocab: int) -> Arrays:
        best = sorted(counts, key=lambda phrase: (-len(phrase) * counts[phrase], phrase))
        kept = sorted(best[: cls.most])
        lengths = [0, *(len(phrase) // 4 for phrase in kept)]
        return {
            "tokens": np.frombuffer(b"".join(kept), ">u4").astype(token_dtype(vocab)),
            "offsets": np.cumsum(lengths).astype(np.uint32),
            "counts": np.array([min(counts[each], _MAX_COUNT) for each in kept], np.uint32),
        }

    def __init__(self, arrays: Arrays, vocab: int) -> None:
        require(arrays, tokens=token_dtype(vocab), offsets=np.uint32, counts=np.uint32)
        self.tokens, self.offsets, self.counts = (arrays[name] for name in self.names)
        if len(self.offsets) != len(self.counts) + 1 or len(self.counts) > self.most:
            raise StoreError(
                f"a shard has {len(self.offsets):,} offsets and {len(self.counts):,} counts; there "
                f"must be one offset more, and up to {self.most:,} phrases"
            )

    def phrases(self) -> Iterator[NDArray[Any]]:
        """The tokens of each phrase; whatever the offsets are, no more than `LONGEST` of them."""
        tokens, offsets = self.tokens.view(np.ndarray), self.offsets.tolist()
        for begin, end in pairwise(offsets):
            yield tokens[begin : min(end, begin + LONGEST)]

    def check(self, vocab: int) -> None:
        least, most = self.lengths
        lengths = np.diff(self.offsets.astype(np.int64))
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens):
            raise StoreError("its offsets are not those of its tokens")
        if len(lengths) and not (least <= lengths.min() and lengths.max() <= most):
            raise StoreError(f"a phrase has {least} to {most} tokens, and one has not")
        if len(self.tokens) and int(self.tokens.max()) >= vocab:
            raise StoreError("a token is not in the vocabulary")
        keys = [_key(phrase) for phrase in self.phrases()]
        if any(one >= other for one, other in pairwise(keys)):
            raise StoreError("its phrases are not sorted")
        if not self.counts.all():
            raise StoreError("a phrase was never seen")


class PhraseIndex(_Phrases):
    """The maximal repeats of a corpus, each unless a longer one occurs `NEARLY` as often.

    A repeat of more than `LONGEST` tokens is kept in pieces that overlap.

    Example:
        in a corpus of files that all begin with one licence header, the header is a phrase; that it
        begins with `Copyright` is none, unless other texts say so, too.
    """

    kind: ClassVar[str] = "phrases"
    most: ClassVar[int] = 50_000
    lengths: ClassVar[tuple[int, int]] = (2, LONGEST)

    @classmethod
    def _found(cls, text: Any, suffixes: Any, shared: Any, vocab: int) -> Counter[bytes]:
        found = np.empty((len(text), 3), np.int32)
        found = found[: kernels.repeats(text, suffixes, shared, vocab, LEAST, OFTEN, NEARLY, found)]
        saved = found[:, 1].clip(max=LONGEST).astype(np.int64) * found[:, 2]
        counts: Counter[bytes] = Counter()
        for position, length, count in found[np.argsort(-saved, kind="stable")].tolist():
            for piece in _pieces(text[position : position + length]):
                counts[_key(piece)] += count
            if len(counts) >= cls.most:
                break
        return counts

    @classmethod
    def given(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        """The arrays of documents that are phrases as they are, each followed by the id `vocab`."""
        counts: Counter[bytes] = Counter()
        for document in np.split(tokens, np.flatnonzero(tokens == vocab) + 1):
            for piece in _pieces(document[document < vocab]):
                if len(piece) >= cls.lengths[0]:
                    counts[_key(piece)] += GIVEN
        return cls._kept(counts, vocab)


class NgramIndex(_Phrases):
    """The most common 5-grams of a corpus, as many as in the paper."""

    kind: ClassVar[str] = "ngram"
    most: ClassVar[int] = 100_000
    lengths: ClassVar[tuple[int, int]] = (GRAM, GRAM)

    @classmethod
    def _found(cls, text: Any, suffixes: Any, shared: Any, vocab: int) -> Counter[bytes]:
        found = np.empty((len(text), 2), np.int32)
        found = found[: kernels.grams(text, suffixes, shared, vocab, GRAM, found)]
        best = found[np.argsort(-found[:, 1], kind="stable")[: cls.most]]
        return Counter({_key(text[place : place + GRAM]): count for place, count in best.tolist()})


def _key(tokens: NDArray[Any]) -> bytes:
    """Bytes that are sorted as the tokens are."""
    return tokens.astype(">u4").tobytes()


def _pieces(tokens: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A phrase, or parts of it that are short enough."""
    for begin in range(0, max(1, len(tokens) - OVERLAP), LONGEST - OVERLAP):
        yield tokens[begin : begin + LONGEST]
