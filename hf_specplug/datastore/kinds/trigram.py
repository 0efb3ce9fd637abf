"""The trigram index: which tokens followed each pair of tokens, and how often (ADED).

Liu et al. 2024, "Adaptive Draft-Verification for Efficient Large Language Model Decoding",
arXiv 2407.12021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.kinds.contract import NO_SETTINGS, Arrays, Index, require, token_dtype
from hf_specplug.datastore.kinds.registry import register_kind
from hf_specplug.errors import StoreError

MAX_SUCCESSORS = 12
"""Successors kept per pair of tokens, as in the paper's code."""

MAX_VOCAB = (1 << 21) - 1
"""Token ids, so that a trigram fits into 64 bits."""

_MAX_COUNT = (1 << 16) - 1
_MAX_TOTAL = (1 << 32) - 1

Int64 = NDArray[np.int64]
Uint64 = NDArray[np.uint64]


@register_kind
class TrigramIndex(Index):
    """Conditional counts: P(token | pair) is `counts / totals`.

    A context is a pair of tokens that another token follows within a document. There are C
    contexts, sorted, and n successors in total.

    - `firsts` uint32[vocab + 1]: the contexts whose first token is a are
      [firsts[a], firsts[a + 1]);
    - `seconds` uint16[C] or uint32[C] by vocabulary: the second token of each context;
    - `totals` uint32[C]: the number of occurrences of each context, whatever followed;
    - `offsets` uint32[C + 1]: the successors of context i are [offsets[i], offsets[i + 1]), at
      most `MAX_SUCCESSORS`;
    - `successors` uint16[n] or uint32[n]: the most frequent first, then the lower id;
    - `counts` uint16[n]: occurrences of each successor. Where a count overflows, all counts of the
      context and its total are scaled down.

    The size grows with the distinct pairs of a corpus, hence more slowly than the corpus.

    Raises:
        StoreError: a vocabulary of more than `MAX_VOCAB` ids.

    Example:
        in the text `a b c a b d a b c` the context (a, b) has the total 3 and the successors c (2)
        and d (1).
    """

    kind: ClassVar[str] = "trigram"
    summary: ClassVar[str] = "which token follows two tokens; the smallest"
    array_names: ClassVar[tuple[str, ...]] = (
        "firsts",
        "seconds",
        "totals",
        "offsets",
        "successors",
        "counts",
    )

    @classmethod
    def build(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        keys = _trigrams(tokens, vocab)
        keys.sort()
        begins = _begins(keys)
        trigrams, counts = keys[begins], np.diff(begins, append=len(keys))
        pairs = trigrams // np.uint64(vocab + 1)
        groups = _begins(pairs)
        return _arrays(trigrams, counts, pairs[groups], _sums(counts, groups), vocab)

    @classmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        """Sum the counts that the parts kept. Raises StoreError if a part is damaged."""
        for part in parts:
            part.check(vocab)
        width = np.uint64(vocab + 1)
        contexts = [part.contexts() for part in parts]
        trigrams = [
            np.repeat(pairs, part.kept()) * width + part.successors
            for pairs, part in zip(contexts, parts, strict=True)
        ]
        return _arrays(
            *_added(trigrams, [part.counts for part in parts]),
            *_added(contexts, [part.totals for part in parts]),
            vocab,
        )

    def __init__(self, arrays: Arrays, vocab: int) -> None:
        _refuse_wide(vocab)
        token = token_dtype(vocab)
        require(arrays, firsts=np.uint32, seconds=token, totals=np.uint32)
        require(arrays, offsets=np.uint32, successors=token, counts=np.uint16)
        self.firsts, self.seconds = arrays["firsts"], arrays["seconds"]
        self.totals, self.offsets = arrays["totals"], arrays["offsets"]
        self.successors, self.counts = arrays["successors"], arrays["counts"]
        lengths = [len(arrays[name]) for name in self.array_names]
        contexts, successors = len(self.seconds), len(self.successors)
        if lengths != [vocab + 1, contexts, contexts, contexts + 1, successors, successors]:
            raise StoreError(
                f"the arrays of a trigram shard with {vocab:,} token ids have lengths {lengths}, "
                "which do not fit together"
            )

    def contexts(self) -> Uint64:
        """The contexts as numbers `first * (vocab + 1) + second`, ascending: uint64[C]."""
        width = np.uint64(len(self.firsts))
        firsts = np.arange(len(self.firsts) - 1, dtype=np.uint64)
        return np.repeat(firsts, _steps(self.firsts)) * width + self.seconds

    def kept(self) -> Int64:
        """The number of successors of each context: int64[C]."""
        return _steps(self.offsets)

    def check(self, vocab: int) -> None:
        firsts, kept = self.firsts.astype(np.int64), self.kept()
        if firsts[0] != 0 or firsts[-1] != len(self.seconds) or (np.diff(firsts) < 0).any():
            raise StoreError("`firsts` does not divide the contexts")
        if len(self.seconds) and max(self.seconds.max(), self.successors.max(initial=0)) >= vocab:
            raise StoreError("a token id is outside the vocabulary")
        if (np.diff(self.contexts().astype(np.int64)) <= 0).any():
            raise StoreError("its contexts are not sorted")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.successors):
            raise StoreError("`offsets` does not divide the successors")
        if len(kept) and not 1 <= kept.min() <= kept.max() <= MAX_SUCCESSORS:
            raise StoreError(f"a context has no successor, or more than {MAX_SUCCESSORS}")
        context = np.repeat(np.arange(len(kept)), kept)
        counts, tokens = self.counts.astype(np.int64), self.successors.astype(np.int64)
        falls = (counts[1:] < counts[:-1]) | (
            (counts[1:] == counts[:-1]) & (tokens[1:] > tokens[:-1])
        )
        if not (falls | (np.diff(context) > 0)).all() or (counts < 1).any():
            raise StoreError("its successors are not sorted by their counts")
        if (_sums(counts, self.offsets[:-1].astype(np.int64)) > self.totals).any():
            raise StoreError("the successors of a context outnumber its occurrences")


def _steps(offsets: NDArray[Any]) -> Int64:
    """The difference between each offset and the next."""
    wide: Int64 = offsets.astype(np.int64)
    return wide[1:] - wide[:-1]


def _refuse_wide(vocab: int) -> None:
    if vocab > MAX_VOCAB:
        raise StoreError(
            f"a trigram datastore supports at most {MAX_VOCAB:,} token ids, not {vocab:,}"
        )


def _trigrams(tokens: NDArray[Any], vocab: int) -> Uint64:
    """The trigrams within documents, in text order, as numbers in base `vocab + 1`."""
    _refuse_wide(vocab)
    last = max(len(tokens) - 2, 0)
    inside = tokens != vocab
    keys = tokens[:last].astype(np.uint64)
    for skipped in (1, 2):  # in place, to save memory: one key per token
        keys *= np.uint64(vocab + 1)
        keys += tokens[skipped : last + skipped]
    whole: Uint64 = keys[inside[:last] & inside[1 : last + 1] & inside[2 : last + 2]]
    return whole


def _begins(ordered: Uint64) -> Int64:
    """The start of each run of equal numbers."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])


def _sums(values: NDArray[Any], begins: Int64) -> Int64:
    """The sum of each run."""
    if not len(begins):
        return np.zeros(0, np.int64)
    sums: Int64 = np.add.reduceat(values, begins, dtype=np.int64)
    return sums


def _added(keys: Sequence[Uint64], counts: Sequence[NDArray[Any]]) -> tuple[Uint64, Int64]:
    """The distinct keys of several parts, ascending, with the sum of the counts of each."""
    every = np.concatenate(keys)
    order = np.argsort(every)
    begins = _begins(every[order])
    return every[order[begins]], _sums(np.concatenate(counts)[order], begins)


def _arrays(trigrams: Uint64, counts: Int64, pairs: Uint64, totals: Int64, vocab: int) -> Arrays:
    """The arrays for ascending trigrams with counts, and ascending contexts with totals."""
    width = np.uint64(vocab + 1)
    begins = _begins(trigrams // width)
    found = np.diff(begins, append=len(trigrams))
    context = np.repeat(np.arange(len(pairs)), found)
    order = np.lexsort((-counts, context))  # of equal counts the lower id stays first
    rank = np.arange(len(trigrams)) - begins[context]
    kept = order[rank < MAX_SUCCESSORS]
    offsets = np.append(0, np.cumsum(np.minimum(found, MAX_SUCCESSORS)))
    scale = np.minimum(_MAX_COUNT / counts[order[begins]], _MAX_TOTAL / totals).clip(max=1.0)
    scaled = np.maximum(1, counts[kept] * scale[context[kept]]).astype(np.uint16)
    token = token_dtype(vocab)
    return {
        "firsts": np.searchsorted(pairs, width * np.arange(vocab + 1, dtype=np.uint64)).astype(
            np.uint32
        ),
        "seconds": (pairs % width).astype(token),
        "totals": np.maximum(totals * scale, _sums(scaled, offsets[:-1])).astype(np.uint32),
        "offsets": offsets.astype(np.uint32),
        "successors": (trigrams[kept] % width).astype(token),
        "counts": scaled,
    }
