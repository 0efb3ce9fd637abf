"""The suffix index: all tokens, and the order in which their suffixes are sorted (REST)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore.index import NO_SETTINGS, Arrays, Index, require, token_dtype
from hf_specplug.errors import StoreError
from hf_specplug.kernels import suffix as kernels

MAX_SHARD = 1 << 27  # tokens


class SuffixIndex(Index):
    """tokens uint16[n] or uint32[n] by vocabulary, suffixes int32[n]."""

    kind: ClassVar[str] = "suffix"
    names: ClassVar[tuple[str, ...]] = ("tokens", "suffixes")
    joins_all: ClassVar[bool] = False

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
        if self.tokens.shape != self.suffixes.shape or len(self.tokens) > MAX_SHARD:
            raise StoreError(
                f"a shard has tokens {list(self.tokens.shape)} and suffixes "
                f"{list(self.suffixes.shape)}; both must be as long, and up to {MAX_SHARD:,}"
            )

    def check(self, vocab: int) -> None:
        if len(self.tokens) and int(self.tokens.max()) > vocab:
            raise StoreError("a token is not in the vocabulary")
        if not kernels.is_sorted(np.asarray(self.tokens), np.asarray(self.suffixes)):
            raise StoreError("its suffixes are not sorted")
