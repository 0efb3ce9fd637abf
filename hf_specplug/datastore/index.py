"""What an index of a part of a corpus is: made of tokens, kept as arrays, joined with others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

Arrays = dict[str, NDArray[Any]]

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Index(ABC):
    """Base class of the kinds of store; a shard of a store is one index.

    Attributes:
        kind: as the manifest and `specplug build --kind` name it.
        names: of the arrays that it is kept in.
        joins_all: whether shards of any size are joined into one, because they grow more slowly
            than the corpus, or because one is faster to search than many.
        joined: whether a build ends with joining what it wrote: its shards are parts until then.
        verified: arrays whose checksums are compared before they are read.
    """

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    joins_all: ClassVar[bool] = True
    joined: ClassVar[bool] = False
    verified: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def build(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        """The arrays for a part of a corpus: its documents, each followed by the id `vocab`."""

    @classmethod
    @abstractmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        """The arrays for several parts of a corpus together; `settings` are the manifest's."""

    @abstractmethod
    def __init__(self, arrays: Arrays, vocab: int) -> None:
        """Take arrays that were read from disk, with `names`.

        Raises:
            StoreError: they do not fit together. What they hold is not looked at: whoever reads
                them trusts no number in them.
        """

    def about(self) -> dict[str, Any]:
        """What `specplug info` says of it besides."""
        return {}

    @abstractmethod
    def check(self, vocab: int) -> None:
        """Look at every number. Raises StoreError if one cannot be right."""


def token_dtype(vocab: int) -> np.dtype[Any]:
    """uint16 if all ids and the separator fit, else uint32."""
    return np.dtype(np.uint16 if vocab < 1 << 16 else np.uint32)


def require(arrays: Arrays, **wanted: Any) -> None:
    """Raise StoreError unless arrays have one dimension and these dtypes."""
    for name, dtype in wanted.items():
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or array.ndim != 1:
            raise StoreError(
                f"{name} are {array.dtype}{list(array.shape)}, not one row of {np.dtype(dtype)}"
            )
