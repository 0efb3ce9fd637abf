"""A datastore as a corpus, to build one of another kind from the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.corpus import Corpus, Document
from hf_specplug.datastore.kinds.registry import index_class
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError, StoreError


@dataclass(frozen=True)
class StoreCorpus(Corpus):
    """The documents of a datastore whose kind keeps the texts, as token ids.

    Attributes:
        files: one folder of a datastore.

    Raises:
        CorpusError: its kind does not keep the texts, or it is not finished.
        StoreError: it is damaged.
    """

    def __post_init__(self) -> None:
        known = self.store.manifest
        if not index_class(known.kind).keeps_texts:
            raise CorpusError(
                f"{self.files[0]} does not keep its texts (it is of kind {known.kind}): give the "
                "corpus itself, or a datastore of kind suffix"
            )
        if known.build:
            raise CorpusError(f"{self.files[0]} holds an interrupted build: finish it first")

    @cached_property
    def store(self) -> Datastore:
        """The datastore, opened once: opening a dense one reads it to compare checksums."""
        return Datastore(self.files[0])

    def fingerprint(self) -> str:
        data = (Path(self.files[0]) / manifest.NAME).read_bytes()
        return str(xxhash.xxh3_128(data).hexdigest())

    def count(self) -> int | None:
        return self.store.documents

    def documents(self, on_error: Callable[[CorpusError], None]) -> Iterator[Document]:
        store = self.store
        for shard in store.shards:
            tokens = shard.tokens.view(np.ndarray)
            if len(tokens) and int(tokens.max()) > store.manifest.vocab_size:
                raise StoreError(f"{store.path}: a token id is outside the vocabulary")
            begin = 0
            for end in np.flatnonzero(tokens == store.manifest.vocab_size).tolist():
                yield tokens[begin:end].astype(np.int32)
                begin = end + 1


def is_store(sources: list[str]) -> bool:
    """Whether the sources are a single datastore."""
    return len(sources) == 1 and (Path(sources[0]) / manifest.NAME).is_file()
