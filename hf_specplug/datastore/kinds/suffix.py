"""The suffix index: all tokens of a corpus and its suffix array (REST).

He et al. 2023, "REST: Retrieval-Based Speculative Decoding", arXiv 2311.08252.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.kinds.contract import NO_SETTINGS, Arrays, Index, require, token_dtype
from hf_specplug.datastore.kinds.registry import register_kind
from hf_specplug.errors import StoreError
from hf_specplug.kernels import suffix as kernels

MAX_SHARD_TOKENS = 1 << 27
"""Tokens of a shard of any kind: suffixes are int32, and the sort needs several arrays of them."""


@register_kind
class SuffixIndex(Index):
    """Tokens and their suffix array.

    - `tokens` uint16[n] or uint32[n] by vocabulary: documents, each followed by the id `vocab`;
    - `suffixes` int32[n]: the start of every suffix, in lexicographic order.

    Example:
        of the tokens `b a b a` the suffixes in order are `a` (3), `a b a` (1), `b a` (2) and
        `b a b a` (0), so that `suffixes` is 3 1 2 0.
    """

    kind: ClassVar[str] = "suffix"
    summary: ClassVar[str] = "exact matches of any length"
    array_names: ClassVar[tuple[str, ...]] = ("tokens", "suffixes")
    merge_into_one: ClassVar[bool] = False
    keeps_texts: ClassVar[bool] = True

    @classmethod
    def build(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        suffixes = kernels.suffix_array(tokens.astype(np.int32), vocab + 1)
        return {"tokens": tokens.astype(token_dtype(vocab)), "suffixes": suffixes}

    @classmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        return cls.build(np.concatenate([part.tokens for part in parts]), vocab)

    def __init__(self, arrays: Arrays, vocab: int) -> None:
        require(arrays, tokens=token_dtype(vocab), suffixes=np.int32)
        self.tokens, self.suffixes = arrays["tokens"], arrays["suffixes"]
        if self.tokens.shape != self.suffixes.shape or len(self.tokens) > MAX_SHARD_TOKENS:
            raise StoreError(
                f"a shard has {len(self.tokens):,} tokens and {len(self.suffixes):,} suffixes; "
                f"there must be as many of both, and at most {MAX_SHARD_TOKENS:,}"
            )

    def check(self, vocab: int) -> None:
        if len(self.tokens) and int(self.tokens.max()) > vocab:
            raise StoreError("a token id is outside the vocabulary")
        if not kernels.is_sorted(np.asarray(self.tokens), np.asarray(self.suffixes)):
            raise StoreError("its suffixes are not sorted")
