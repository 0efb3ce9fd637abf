"""For transformers' own assisted loop, which asks a candidate generator for single paths."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafting.search import TreeSearch

MAX_PATH = 10
"""Tokens proposed at once: as many as transformers' prompt lookup proposes."""

ANY_TOKEN = (1 << 31) - 1
"""The vocabulary size that is assumed: this loop does not say which vocabulary the model has."""


class AssistedCandidates:
    """Proposes the likeliest path after a text that grows from question to question."""

    def __init__(self) -> None:
        self._paths = threading.local()

    @abstractmethod
    def _begin_path(self, context: Context) -> tuple[TreeSearch, Any]:
        """A search that has begun with `context`, and the lock to hold while it is used."""

    @abstractmethod
    def _max_path(self) -> int:
        """Maximum number of tokens to propose at once."""

    def get_candidates(self, input_ids: Any, **kwargs: Any) -> tuple[Any, None]:
        """The likeliest single path after `input_ids` int64[1, n], as int64[1, n + k], and None."""
        tokens = input_ids[0].cpu().numpy()
        path: _Path | None = getattr(self._paths, "last", None)
        if path is None or not path.continued_by(tokens):
            context = Context(tokens, ANY_TOKEN)
            path = self._paths.last = _Path(context, *self._begin_path(context))
        draft = path.draft(tokens, min(self._max_path(), MAX_PATH))
        return input_ids.new_tensor(np.concatenate([tokens, draft])[None]), None

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: int) -> None:
        """Nothing to do: what was accepted shows in the next `get_candidates`."""


class _Path:
    """The text of one request, and the search after it.

    Args:
        context: the text so far; the search has begun with it.
        lock: held while its drafters are asked and told.
    """

    def __init__(self, context: Context, search: TreeSearch, lock: Any) -> None:
        self._context, self._search, self._lock = context, search, lock

    def continued_by(self, tokens: NDArray[np.int64]) -> bool:
        """Whether a text begins with the known one."""
        known = self._context.tokens
        return len(known) <= len(tokens) and bool((known == tokens[: len(known)]).all())

    def draft(self, tokens: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
        """int64[k], k <= `limit`: what may follow a text that continues the known one."""
        new = tokens[len(self._context) :].astype(np.int32)
        with self._lock:
            if len(new):
                self._context.append(new)
                self._search.learn(new)
                self._search.observe(Step.of_text(new[:0], len(tokens), [], new, None))
            tree = self._search.grow(self._context.last, limit, limit, chain=True)
        return tree.tokens.astype(np.int64)
