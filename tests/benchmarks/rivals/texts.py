"""The documents that some rivals draft from, and our datastores of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus
from hf_specplug.datastore.building.executors import tokenize
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError
from tests.benchmarks.rivals.base import Given

KINDS = ("suffix", "trigram", "phrases")


def given(vocab_size: int, folder: Path, path: str | None, tokenizer: Any) -> Given:
    """Read the documents of a file, and build our stores in `folder`.

    Args:
        path: JSON lines with "text", as `specplug build` reads them; None: no documents.
        tokenizer: the one of the recording's model; not needed without documents.

    Raises:
        CorpusError: a line that has no text.
        OSError: the file cannot be read.
    """
    if path is None:
        return Given(vocab_size, folder)
    corpus = Corpus((path,))
    texts = tokenize(tokenizer, list(corpus.documents(_stop)))
    stores = []
    for kind in KINDS:
        build(folder / kind, corpus, tokenizer, BuildOptions(kind=kind), _stop, lambda *_: None)
        stores.append(Datastore(folder / kind))
    return Given(vocab_size, folder, tuple(texts), tuple(stores))


def _stop(error: CorpusError) -> None:
    raise error
