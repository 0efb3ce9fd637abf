"""Single paths for transformers' own assisted loop, which asks for candidates by itself."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.decode import observe
from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafting.search import TreeSearch

LONGEST = 10
"""Tokens proposed at once: as many as transformers' prompt lookup proposes."""


class Chain:
    """The likeliest path after a text that grows from question to question.

    Args:
        context: the text so far.
        search: of drafters that have begun with it.
        lock: held while they are asked and told, see `decode`.
    """

    def __init__(
        self, context: Context, search: TreeSearch, lock: AbstractContextManager[Any]
    ) -> None:
        self._context, self._search, self._lock = context, search, lock

    def continued_by(self, tokens: NDArray[np.int64]) -> bool:
        """Whether a text is the one that is known, or begins with it."""
        known = self._context.tokens
        return len(known) <= len(tokens) and bool((known == tokens[: len(known)]).all())

    def draft(self, tokens: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
        """int64[k], k <= `limit`: what may follow a text that `continued_by` has agreed to."""
        new = tokens[len(self._context) :].astype(np.int32)
        limit = min(limit, LONGEST)
        with self._lock:
            if len(new):
                self._context.append(new)
                self._search.learn(new)
                observe(self._search, Step.of_text(new[:0], len(tokens), [], new, None))
            tree = self._search.grow(self._context.last, limit, limit, chain=True)
        return tree.tokens.astype(np.int64)
