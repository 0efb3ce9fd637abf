"""SuffixDecoding (arXiv 2411.04975), by its authors' package: suffix trees of texts and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from arctic_inference.suffix_decoding import SuffixDecodingCache

from hf_specplug.drafters.contract import Int32
from tests.benchmarks.rivals.base import Drawn, Given, Rival, tail

_DEPTH = 64  # its default


class SuffixDecoding(Rival):
    """A tree of the request and one of all answers; drafts from the one that promises more.

    Args:
        texts: take the documents for earlier answers.
        options: of its `speculate`.
    """

    def __init__(self, given: Given, texts: bool = False, **options: Any) -> None:
        self._cache = SuffixDecodingCache(max_tree_depth=_DEPTH)
        self._options = options
        self._request = 0
        for number, text in enumerate(given.texts if texts else ()):
            self._cache.start_request(-1 - number, np.empty(0, np.int32))
            self._cache.add_active_response(-1 - number, text)
            self._cache.stop_request(-1 - number)

    def begin(self, prompt: Int32) -> None:
        if self._request:
            self._cache.stop_request(self._request)  # what it answered is kept
        self._request += 1
        self._cache.start_request(self._request, prompt)
        self._text = prompt[-_DEPTH:]

    def draft(self, limit: int, depth: int) -> Any:
        return self._cache.speculate(
            self._request, self._text, max_spec_tokens=limit, **self._options
        )

    def tree(self, draft: Any) -> Drawn:
        return draft.token_ids, draft.parents

    def observe(self, emitted: Int32, rows: object) -> None:
        self._cache.add_active_response(self._request, emitted)
        self._text = tail(self._text, emitted, _DEPTH)
