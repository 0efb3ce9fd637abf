"""The kinds of datastore."""

from __future__ import annotations

from hf_specplug.datastore.dense import DenseIndex
from hf_specplug.datastore.index import Index
from hf_specplug.datastore.phrases import NgramIndex, PhraseIndex
from hf_specplug.datastore.suffix import SuffixIndex
from hf_specplug.datastore.trigram import TrigramIndex

KINDS: dict[str, type[Index]] = {
    index.kind: index for index in (SuffixIndex, TrigramIndex, PhraseIndex, NgramIndex, DenseIndex)
}
"""By name."""
