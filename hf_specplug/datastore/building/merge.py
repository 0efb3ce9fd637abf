"""Joining the shards of a datastore into fewer ones, which makes it faster to search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.folder import exclusive_writer, remove_unlisted, write_shard
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.building.shard_writer import Progress
from hf_specplug.datastore.kinds.registry import index_class
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.datastore.store import Datastore, require_tokenizer
from hf_specplug.errors import StoreError


def merge(
    folder: Path, shard_tokens: int, progress: Progress, corpus: Path | None = None
) -> Manifest:
    """Join consecutive shards into shards of at most `shard_tokens` tokens.

    Kinds with `merge_into_one` get a single shard. Open readers keep the state they have.

    Args:
        folder: folder of the datastore.
        shard_tokens: from 1 to 2^27.
        progress: called with (shards, tokens) that have been joined since the last call.
        corpus: folder of a datastore that holds the whole corpus: phrases are counted again, over
            its texts.

    Raises:
        StoreError: the folder is not a finished datastore, or it is damaged; or its kind does not
            count phrases; or `corpus` does not keep its texts, or is of another tokenizer.
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
        texts = None if corpus is None else _texts(corpus, store)
        sizes = [shard.tokens for shard in store.manifest.shards]
        most = sum(sizes) if kind.merge_into_one else options.shard_tokens
        shards: list[Shard] = []
        for group in _groups(sizes, most):
            if len(group) == 1 and group[0] == len(shards) and texts is None:
                shards.append(store.manifest.shards[group[0]])
            else:
                parts = [store.shards[i] for i in group]
                index = kind.join(parts, vocab, store.manifest.settings)
                if texts is not None:
                    index = kind.recount(index, texts, vocab, lambda n: progress(0, n))
                documents = sum(store.manifest.shards[i].documents for i in group)
                tokens = sum(sizes[i] for i in group)
                shards.append(write_shard(folder, len(shards), index, documents, tokens))
            progress(len(group), sum(sizes[i] for i in group))
        state = store.manifest.with_shards(tuple(shards), {})
        manifest.save(folder, state)
        remove_unlisted(folder)
    return state


def _texts(corpus: Path, store: Datastore) -> list[NDArray[Any]]:
    """The tokens of all shards of a corpus, to count the phrases of a store in them."""
    state, found = store.manifest, Datastore(corpus)
    if not index_class(state.kind).recounts:
        raise StoreError(f"{store.path} is of kind {state.kind}, which counts no phrases")
    require_tokenizer(found.path, found.manifest, state.tokenizer)
    if not index_class(found.manifest.kind).keeps_texts:
        raise StoreError(f"{corpus} does not keep its texts (it is of kind {found.manifest.kind})")
    return [shard.tokens.view(np.ndarray) for shard in found.shards]


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
