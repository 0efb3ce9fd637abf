"""The contract of a kind of datastore: an index that is built, joined, opened and checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import StoreError

Arrays = dict[str, NDArray[Any]]
"""The arrays of an index by name."""

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Index(ABC):
    """Base class of the kinds of datastore. Each shard of a datastore is one index.

    A kind is one file: subclass `Index`, decorate the class with `register_kind`, and put it into
    `hf_specplug/datastore/kinds/` (or import it before it is used). A drafter whose `kinds` contain
    its name reads it.

    Attributes:
        kind: name in the manifest and in `specplug build --kind`.
        summary: one line about it, for `specplug build --help`.
        array_names: names of the arrays that make up an index.
        optional_arrays: names of arrays that an index may have besides.
        verify_on_open: names of the arrays whose checksums are compared when a shard is opened.
        merge_into_one: whether `specplug merge` joins all shards into one, whatever their size.
        join_after_build: whether a build ends by joining the shards that it wrote into one.
        keeps_texts: whether an index has the whole corpus as `tokens`: int[n], each document
            followed by the id `vocab`. If so, a datastore can be the corpus of another one.
        accepts_given: whether `build_given` is implemented (`specplug build --given`).
        recounts: whether a build ends by `recount`; see there.
        needs_model: whether only a model's hidden states make an index (`specplug build --model`).
    """

    kind: ClassVar[str]
    summary: ClassVar[str]
    array_names: ClassVar[tuple[str, ...]]
    optional_arrays: ClassVar[tuple[str, ...]] = ()
    verify_on_open: ClassVar[tuple[str, ...]] = ()
    merge_into_one: ClassVar[bool] = True
    join_after_build: ClassVar[bool] = False
    keeps_texts: ClassVar[bool] = False
    accepts_given: ClassVar[bool] = False
    recounts: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def build(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        """Build the arrays of a shard.

        Args:
            tokens: int[n], the documents of the shard, each followed by the id `vocab`.
            vocab: number of token ids.
        """

    @classmethod
    def build_given(cls, tokens: NDArray[Any], vocab: int) -> Arrays:
        """Build the arrays of a shard that keeps each document whole, as one phrase."""
        raise StoreError(f"datastores of kind {cls.kind} cannot be built with --given")

    @classmethod
    @abstractmethod
    def join(
        cls, parts: Sequence[Any], vocab: int, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> Arrays:
        """Build the arrays of one shard from several opened ones.

        Args:
            parts: indexes of this class.
            vocab: number of token ids.
            settings: those of the manifest.
        """

    @classmethod
    def recount(
        cls,
        arrays: Arrays,
        texts: Iterable[NDArray[Any]],
        vocab: int,
        progress: Callable[[int], None],
    ) -> Arrays:
        """Replace the counts of a joined index by those over whole texts.

        Args:
            arrays: what `join` returned.
            texts: int[_], the tokens of all shards, as `build` received them.
            vocab: number of token ids.
            progress: called with the tokens that have been searched since the last call.
        """
        return arrays

    @abstractmethod
    def __init__(self, arrays: Arrays, vocab: int) -> None:
        """Open the arrays of a shard, mapped from disk; optional ones where they exist.

        Only dtypes and shapes are checked here. Values are not: code that reads them must not
        trust them.

        Raises:
            StoreError: the arrays do not fit together.
        """

    def about(self) -> dict[str, Any]:
        """Further figures for `specplug info`, by name."""
        return {}

    @abstractmethod
    def check(self, vocab: int) -> None:
        """Check every value. Raises StoreError if one cannot be right."""

    @classmethod
    def check_settings(cls, raw: Any) -> dict[str, Any]:
        """The settings of a manifest, checked. A kind without settings ignores what is there.

        Raises:
            ValueError, KeyError, TypeError: they cannot be used.
        """
        return {}

    @classmethod
    def shard_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the settings in which all shards of a datastore must agree."""
        return {}


def token_dtype(vocab: int) -> np.dtype[Any]:
    """uint16 if all token ids and the separator fit into it, otherwise uint32."""
    return np.dtype(np.uint16 if vocab < 1 << 16 else np.uint32)


def require(arrays: Arrays, **dtypes: Any) -> None:
    """Raise StoreError unless the named arrays are one-dimensional and of these dtypes."""
    for name, dtype in dtypes.items():
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or array.ndim != 1:
            raise StoreError(
                f"{name} is {array.dtype}{list(array.shape)}, not one row of {np.dtype(dtype)}"
            )
