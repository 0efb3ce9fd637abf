"""An opened datastore, and the identity of the tokenizer that made it."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import xxhash

from hf_specplug.datastore import arrays, manifest
from hf_specplug.datastore.kinds.contract import Index
from hf_specplug.datastore.kinds.registry import index_class
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.errors import StoreError

_ATTEMPTS = 100  # to open it; each fails only if a writer has replaced files meanwhile


class Datastore:
    """A datastore in the state in which it was opened.

    It stays readable and unchanged while others append to the folder or merge it.

    Args:
        path: folder of the datastore.

    Attributes:
        path: the folder.
        manifest: the manifest that was read.
        shards: one mapped index per shard. Their values are not checked; see `check`.
        tokenizer: the model's tokenizer, if `with_tokenizer` has compared it; otherwise None.

    Raises:
        StoreError: the folder is not a datastore, is damaged, or has an unsupported format.

    Example:
        >>> Datastore("no-such-folder")
        Traceback (most recent call last):
        hf_specplug.errors.StoreError: no-such-folder is not a datastore: it has no specplug.json...
    """

    tokenizer: Any = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        for left in reversed(range(_ATTEMPTS)):
            self.manifest = manifest.load(self.path)
            try:
                self.shards: list[Any] = [self._open(shard) for shard in self.manifest.shards]
                break
            except StoreError:
                if left == 0 or manifest.load(self.path) == self.manifest:
                    raise

    def _open(self, shard: Shard) -> Index:
        kind = index_class(self.manifest.kind)
        if missing := set(kind.array_names) - set(shard.arrays):
            raise StoreError(f"{self.path}: a shard has no {', '.join(sorted(missing))}")
        names = [*kind.array_names, *(n for n in kind.optional_arrays if n in shard.arrays)]
        for name in set(kind.verify_on_open).intersection(names):
            arrays.verify(self.path, shard.arrays[name])
        opened = {name: arrays.open_array(self.path, shard.arrays[name]) for name in names}
        try:
            return kind(opened, self.manifest.vocab_size)
        except StoreError as error:
            raise StoreError(f"{self.path}: {error}") from error

    def __reduce__(self) -> tuple[type[Datastore], tuple[Path]]:
        return Datastore, (self.path,)

    def __deepcopy__(self, memo: Any) -> Datastore:
        return self  # immutable

    def __len__(self) -> int:
        """The number of tokens it was built from, the ends of documents included."""
        return sum(shard.tokens for shard in self.manifest.shards)

    @property
    def documents(self) -> int:
        """The number of documents it was built from."""
        return sum(shard.documents for shard in self.manifest.shards)

    @property
    def bytes(self) -> int:
        """The size of all files in bytes."""
        return sum((self.path / name).stat().st_size for name in self.manifest.files())

    def check(self, deep: bool = False) -> None:
        """Compare the checksums of all files.

        Args:
            deep: also check every value.

        Raises:
            StoreError: a file has changed since it was written, or a value cannot be right.
        """
        for number, (shard, opened) in enumerate(
            zip(self.manifest.shards, self.shards, strict=True)
        ):
            for array in shard.arrays.values():
                arrays.verify(self.path, array)
            try:
                if deep:
                    opened.check(self.manifest.vocab_size)
            except StoreError as error:
                raise StoreError(f"{self.path}, shard {number}: {error}") from error

    def require_tokenizer(self, tokenizer: Any) -> None:
        """Raise StoreError unless `tokenizer` has the token ids of this datastore."""
        require_tokenizer(self.path, self.manifest, tokenizer_identity(tokenizer))

    def with_tokenizer(self, tokenizer: Any) -> Datastore:
        """This datastore with its tokenizer, so that its texts can be compared with others.

        Raises:
            StoreError: `tokenizer` has other token ids.
        """
        self.require_tokenizer(tokenizer)
        twin = copy.copy(self)
        twin.tokenizer = tokenizer
        return twin


def tokenizer_identity(tokenizer: Any) -> dict[str, str]:
    """{"name", "hash"} of a tokenizer, as in a manifest."""
    name = str(getattr(tokenizer, "name_or_path", "")) or "unknown"
    return {"name": name, "hash": tokenizer_hash(tokenizer)}


def require_tokenizer(path: Path, state: Manifest, tokenizer: dict[str, str]) -> None:
    """Raise StoreError unless a datastore has the token ids of the tokenizer of this identity."""
    if tokenizer["hash"] != state.tokenizer["hash"]:
        raise StoreError(
            f"{path} was built with the tokenizer of {state.tokenizer['name']}, whose token ids "
            f"differ from those of {tokenizer['name']}: build a datastore with this tokenizer (or "
            "pass no tokenizer to draft from this one, which is lossless but slow)"
        )


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of the vocabulary: equal if every token id has the same meaning."""
    digest = xxhash.xxh3_128()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        digest.update(f"{index} {token}\n".encode("utf-8", errors="surrogatepass"))
    return str(digest.hexdigest())
