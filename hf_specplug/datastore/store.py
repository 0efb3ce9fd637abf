"""Opening and checking datastores."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from hf_specplug.datastore import arrays, manifest
from hf_specplug.datastore.building.corpus import HUB
from hf_specplug.datastore.index import Index
from hf_specplug.datastore.kinds import KINDS
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.errors import StoreError

_TRIES = 5  # of opening, while a writer replaces files


class Datastore:
    """A store as it was when it was opened; it stays readable when it is appended to or merged.

    Args:
        path: its folder.

    Attributes:
        path, manifest: what was opened.
        shards: an index each, mapped; no number in them is to be trusted.

    Raises:
        StoreError: it is missing, damaged, unfinished or of another version.

    Example:
        >>> Datastore("no-such-folder")
        Traceback (most recent call last):
        hf_specplug.errors.StoreError: no-such-folder is no datastore: it has no specplug.json ...
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        for left in reversed(range(_TRIES)):
            self.manifest = manifest.load(self.path)
            try:
                self.shards: list[Any] = [self._open(shard) for shard in self.manifest.shards]
                break
            except StoreError:
                if left == 0 or manifest.load(self.path) == self.manifest:
                    raise

    def _open(self, shard: Shard) -> Index:
        kind = KINDS[self.manifest.kind]
        if missing := set(kind.names) - set(shard.arrays):
            raise StoreError(f"{self.path}: a shard has no {', '.join(sorted(missing))}")
        for name in kind.verified:
            arrays.verify(self.path, shard.arrays[name])
        opened = {name: arrays.open_array(self.path, shard.arrays[name]) for name in kind.names}
        try:
            return kind(opened, self.manifest.vocab_size)
        except StoreError as error:
            raise StoreError(f"{self.path}: {error}") from error

    def __reduce__(self) -> tuple[type[Datastore], tuple[Path]]:
        return Datastore, (self.path,)

    def __deepcopy__(self, memo: Any) -> Datastore:
        return self  # it never changes

    def __len__(self) -> int:
        """How many tokens it was made of, the ends of documents included."""
        return sum(shard.tokens for shard in self.manifest.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.manifest.shards)

    @property
    def bytes(self) -> int:
        """On disk, all files."""
        return sum((self.path / name).stat().st_size for name in self.manifest.files())

    def check(self, deep: bool = False) -> None:
        """Compare all checksums; `deep`: also look at every number.

        Raises:
            StoreError: something is not as it was written.
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

    def refuse_other(self, tokenizer: Any) -> None:
        """Raise StoreError unless its tokens were made by an equal tokenizer."""
        refuse_other(self.path, self.manifest, described(tokenizer))


def described(tokenizer: Any) -> dict[str, str]:
    """What a manifest says of a tokenizer."""
    name = str(getattr(tokenizer, "name_or_path", "")) or "unknown"
    return {"name": name, "hash": tokenizer_hash(tokenizer)}


def refuse_other(path: Path, state: Manifest, tokenizer: dict[str, str]) -> None:
    """Raise StoreError unless a store's tokens were made by the `described` tokenizer."""
    if tokenizer["hash"] != state.tokenizer["hash"]:
        raise StoreError(
            f"{path} was built with the tokenizer of {state.tokenizer['name']}, whose ids are not "
            f"those of {tokenizer['name']}: build another store; or to draft from it all the same, "
            "which is slow but lossless, give no tokenizer"
        )


def tokenizer_hash(tokenizer: Any) -> str:
    """Equal for tokenizers that give every id the same meaning."""
    digest = xxhash.xxh3_128()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        digest.update(f"{index} {token}\n".encode("utf-8", errors="surrogatepass"))
    return str(digest.hexdigest())


def open_all(
    stores: Iterable[str | os.PathLike[str] | Datastore], tokenizer: Any = None
) -> list[Datastore]:
    """Open stores (`hf://NAME[@REVISION]`: of the Hub), refuse those of another tokenizer."""
    opened = [store if isinstance(store, Datastore) else _open(store) for store in stores]
    if tokenizer is not None:
        for store in opened:
            store.refuse_other(tokenizer)
    return opened


def _open(path: str | os.PathLike[str]) -> Datastore:
    name = os.fspath(path)
    if not name.startswith(HUB):
        return Datastore(path)
    from hf_specplug.datastore.hub import from_hub

    repo, _, revision = name.removeprefix(HUB).partition("@")
    return from_hub(repo, revision or None)
