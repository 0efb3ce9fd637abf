"""The kinds of datastore."""

from __future__ import annotations

from hf_specplug.datastore.index import Index
from hf_specplug.datastore.suffix import SuffixIndex

KINDS: dict[str, type[Index]] = {index.kind: index for index in (SuffixIndex,)}
"""By name."""
