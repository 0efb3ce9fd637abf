"""Joining the shards of a datastore into fewer ones, which makes it faster to search."""

from __future__ import annotations

from pathlib import Path

from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.build import Progress
from hf_specplug.datastore.building.folder import exclusive_writer, remove_unlisted, write_shard
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.kinds.registry import index_class
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import StoreError


def merge(folder: Path, shard_tokens: int, progress: Progress) -> Manifest:
    """Join consecutive shards into shards of at most `shard_tokens` tokens.

    Kinds with `merge_into_one` get a single shard. Open readers keep the state they have.

    Args:
        folder: folder of the datastore.
        shard_tokens: from 1 to 2^27.
        progress: called with (shards, tokens) that have been joined since the last call.

    Raises:
        StoreError: the folder is not a finished datastore, or it is damaged.
    """
    folder = Path(folder)
    options = BuildOptions(shard_tokens=shard_tokens)
    manifest.load(folder)
    with exclusive_writer(folder):
        store = Datastore(folder)
        if store.manifest.build:
            raise StoreError(f"{folder} holds an interrupted build: finish it first")
        store.check()
        kind, vocab = index_class(store.manifest.kind), store.manifest.vocab_size
        sizes = [shard.tokens for shard in store.manifest.shards]
        most = sum(sizes) if kind.merge_into_one else options.shard_tokens
        shards: list[Shard] = []
        for group in _groups(sizes, most):
            if len(group) == 1 and group[0] == len(shards):
                shards.append(store.manifest.shards[group[0]])
            else:
                parts = [store.shards[i] for i in group]
                index = kind.join(parts, vocab, store.manifest.settings)
                documents = sum(store.manifest.shards[i].documents for i in group)
                tokens = sum(sizes[i] for i in group)
                shards.append(write_shard(folder, len(shards), index, documents, tokens))
            progress(len(group), sum(sizes[i] for i in group))
        state = store.manifest.with_shards(tuple(shards), {})
        manifest.save(folder, state)
        remove_unlisted(folder)
    return state


def _groups(sizes: list[int], most: int) -> list[list[int]]:
    """Consecutive shards that have at most `most` tokens together."""
    groups: list[list[int]] = []
    total = 0
    for index, size in enumerate(sizes):
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups
