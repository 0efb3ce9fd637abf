"""A datastore's own texts as a corpus: for another kind of store of the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.corpus import Corpus, Document
from hf_specplug.datastore.dense import DenseIndex
from hf_specplug.datastore.store import Datastore
from hf_specplug.datastore.suffix import SuffixIndex
from hf_specplug.errors import CorpusError, StoreError

_WITH_TEXTS = (SuffixIndex.kind, DenseIndex.kind)


@dataclass(frozen=True)
class StoreCorpus(Corpus):
    """The documents of one datastore that keeps its tokens, as tokens.

    Raises:
        CorpusError: it keeps none, or is not finished.
        StoreError: it is damaged.
    """

    def __post_init__(self) -> None:
        known = self.store.manifest
        if known.kind not in _WITH_TEXTS:
            raise CorpusError(
                f"{self.files[0]} keeps no texts (it is of kind {known.kind}): give the corpus, or "
                "a store of kind suffix"
            )
        if known.build:
            raise CorpusError(f"{self.files[0]} holds an interrupted build: finish it first")

    @cached_property
    def store(self) -> Datastore:
        """Opened once: of a dense one that compares checksums."""
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
                raise StoreError(f"{store.path}: a token is not in the vocabulary")
            begin = 0
            for end in np.flatnonzero(tokens == store.manifest.vocab_size).tolist():
                yield tokens[begin:end].astype(np.int32)
                begin = end + 1


def is_store(given: list[str]) -> bool:
    """Whether a corpus was given as one datastore."""
    return len(given) == 1 and (Path(given[0]) / manifest.NAME).is_file()
