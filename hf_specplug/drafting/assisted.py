"""Candidate generator for transformers' own assisted decoding, which takes single paths."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafting.search import TreeSearch

MAX_PATH = 10
"""Maximum number of tokens proposed at once, the number that transformers' prompt lookup uses."""

ANY_TOKEN = (1 << 31) - 1
"""The vocabulary size that is assumed: the assisted loop does not pass the model's."""


class AssistedCandidates:
    """Proposes the most likely path after a text that grows from call to call."""

    def __init__(self) -> None:
        self._paths = threading.local()

    @abstractmethod
    def _begin_path(self, context: Context) -> tuple[TreeSearch, Any]:
        """A search that has begun with `context`, and the lock to hold while using it."""

    @abstractmethod
    def _max_path(self) -> int:
        """Maximum number of tokens to propose at once."""

    def get_candidates(self, input_ids: Any, **kwargs: Any) -> tuple[Any, None]:
        """Propose the most likely single path of k tokens after a text.

        Args:
            input_ids: int64[1, n], the text so far.

        Returns:
            (int64[1, n + k], the text and the path; None, as there are no draft logits)
        """
        tokens = input_ids[0].cpu().numpy()
        path: _Path | None = getattr(self._paths, "last", None)
        if path is None or not path.continued_by(tokens):
            context = Context(tokens, ANY_TOKEN)
            path = self._paths.last = _Path(context, *self._begin_path(context))
        draft = path.draft(tokens, min(self._max_path(), MAX_PATH))
        return input_ids.new_tensor(np.concatenate([tokens, draft])[None]), None

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: int) -> None:
        """Do nothing: the next `get_candidates` call shows which tokens were accepted."""


class _Path:
    """The text of one request, and the search that drafts after it.

    Args:
        context: the text so far.
        search: a search that has begun with `context`.
        lock: held while the drafters of `search` propose and learn.
    """

    def __init__(self, context: Context, search: TreeSearch, lock: Any) -> None:
        self._context, self._search, self._lock = context, search, lock

    def continued_by(self, tokens: NDArray[np.int64]) -> bool:
        """Whether `tokens` int64[n] begin with the known text."""
        known = self._context.tokens
        return len(known) <= len(tokens) and bool((known == tokens[: len(known)]).all())

    def draft(self, tokens: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
        """Draft int64[k], k <= `limit`, after `tokens` int64[n], which continue the known text."""
        new = tokens[len(self._context) :].astype(np.int32)
        with self._lock:
            if len(new):
                self._context.append(new)
                self._search.learn(new)
                self._search.observe(Step.of_text(new[:0], len(tokens), [], new, None))
            tree = self._search.grow(self._context.last, limit, limit, chain=True)
        return tree.tokens.astype(np.int64)
