"""Chain drafts for transformers' own assisted decoding, which verifies single paths."""

from __future__ import annotations

import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Context, Int32, Step, TopK, as_text
from hf_specplug.drafting.budget import Budget, Decision
from hf_specplug.drafting.draft import draft
from hf_specplug.drafting.drafter_sets import DrafterSet
from hf_specplug.drafting.ensemble import Ensemble
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.tree import DraftTree

Report = Callable[[int, DraftTree, Sequence[int], Sequence[int]], None]
"""Receives what a forward pass verified: root, tree, visited and emitted, see `CheckedStep`."""


class AssistedRequest:
    """One text of an assisted loop: chains are drafted after it, and learned from.

    The drafters are taken until `close` is called or nothing refers to the request anymore.

    Args:
        context: the text so far.
        search: a search that has begun with `context`.
        budget: chooses the length of each chain.
        ensemble: the owner of the drafters.
        drafter_set: the drafters of `search`.
        longest: maximum length of text and chain, in tokens.
        topk: takes the scores float[n, V] of a forward pass; returns the likeliest tokens.
        report: receives each verified chain, except that of the prompt's forward pass.
    """

    def __init__(
        self,
        context: Context,
        search: TreeSearch,
        budget: Budget,
        ensemble: Ensemble,
        drafter_set: DrafterSet,
        longest: int,
        topk: Callable[[Any], TopK],
        report: Report,
    ) -> None:
        self._context, self._search, self._budget = context, search, budget
        self._ensemble, self._longest = ensemble, longest
        self._topk, self._report = topk, report
        self._prompt_run = False
        self._decision: Decision | None = None
        self._drafted_at = 0.0
        self.close = weakref.finalize(self, ensemble.release, drafter_set)
        self.close.atexit = False

    @property
    def vocab_size(self) -> int:
        """Token ids are in [0, vocab_size)."""
        return self._context.vocab_size

    def continued_by(self, tokens: NDArray[np.int64]) -> bool:
        """Whether `tokens` int64[n] begin with the known text."""
        known = self._context.tokens
        text = self._text(tokens[: len(known)])
        return len(known) <= len(tokens) and bool((known == text).all())

    def draft(self, tokens: NDArray[np.int64]) -> Int32:
        """Draft a chain int32[k] after a text `tokens` int64[n], which continues the known one."""
        self._catch_up(tokens)
        context = self._context
        room = max(0, self._longest - len(context))
        if context.last < 0:  # not a token of the text: nothing is known to follow it
            room = 0
        self._decision = draft(
            self._search,
            self._budget,
            context.last,
            len(context),
            room=room,
            depth=room,
            chain=True,
            lock=self._ensemble.lock,
        )
        self._drafted_at = time.perf_counter()
        return self._decision.tree.tokens

    def observe(self, tokens: NDArray[np.int64], accepted: int, scores: Any) -> None:
        """Learn from a verified chain.

        Args:
            tokens: int64[n], the text with the emitted tokens: the accepted ones and one more.
            accepted: number of accepted tokens.
            scores: float[k + 1, V], of the last token before the chain of k tokens, and of each of
                them.
        """
        seconds = time.perf_counter() - self._drafted_at
        self._catch_up(tokens[: -accepted - 1])
        context, search, decision = self._context, self._search, self._decision
        root, before, emitted = context.last, len(context) - 1, self._text(tokens[-accepted - 1 :])
        if decision is not None and not _is_verified(decision.tree, emitted, len(scores)):
            decision = None  # the loop verified another draft, of which only the text is known
        visited = range(accepted + 1)
        context.append(emitted)
        topk: TopK | None = None
        if search.needs("topk"):
            topk = self._topk(scores[: accepted + 1] if decision is None else scores)
        if decision is None:
            text = np.append(np.int32(root), emitted[:-1])
            step = Step.of_text(text, before, visited, emitted, topk)
        else:
            step = Step.of_tree(root, decision.tree, before, visited, emitted, topk)
        with self._ensemble.lock:
            if decision is not None:
                search.learn(step.emitted)
            search.observe(step)
        if decision is not None and self._prompt_run:
            self._budget.observe(decision, accepted, len(context), seconds)
            self._report(root, decision.tree, visited, emitted.tolist())
        self._prompt_run, self._decision = True, None

    def _catch_up(self, tokens: NDArray[np.int64]) -> None:
        """Append what the text has grown by without `observe`."""
        new = self._text(tokens[len(self._context) :])
        if len(new):
            self._decision = None
            self._context.append(new)
            with self._ensemble.lock:
                self._search.observe(Step.of_text(new[:0], len(tokens), [], new, None))

    def _text(self, tokens: NDArray[np.int64]) -> Int32:
        return as_text(tokens, self.vocab_size, self._context.suppressed)


def _is_verified(chain: DraftTree, emitted: Int32, rows: int) -> bool:
    """Whether `chain` is what a forward pass over `rows` tokens verified."""
    accepted = emitted[:-1]
    return len(chain) + 1 == rows and bool((chain.tokens[: len(accepted)] == accepted).all())


class AssistedCandidates:
    """Proposes the most likely path after the text of each thread, and learns from the scores."""

    def __init__(self) -> None:
        self._requests = threading.local()

    @abstractmethod
    def _begin_request(
        self, tokens: NDArray[np.int64], vocab_size: int | None
    ) -> AssistedRequest | None:
        """Begin a request after a text int64[n]; None if nothing can be drafted.

        Args:
            vocab_size: None if it is not known from scores.
        """

    def get_candidates(self, input_ids: Any, **kwargs: Any) -> tuple[Any, None]:
        """Propose the most likely single path of k tokens after a text.

        A text that does not continue the last one of this thread begins a new request. A plug that
        is not attached proposes nothing before the first scores of a request: until then it does
        not know the vocabulary.

        transformers' assisted loop cannot be given a candidate generator by public means
        (`assistant_model` takes a model): a private method has to be replaced, as below. The loop
        draws random numbers for rejected tokens as well. Sampled text therefore has the model's
        distribution, but differs from that of plain `generate` with the same seed.

        Args:
            input_ids: int64[1, n], the text so far.

        Returns:
            (int64[1, n + k], the text and the path; None, as there are no draft logits)

        Example:
            >>> plug = attach(model)  # doctest: +SKIP
            >>> model._get_candidate_generator = lambda **arguments: plug  # doctest: +SKIP
            >>> model.generate(**inputs, prompt_lookup_num_tokens=1)  # doctest: +SKIP
        """
        tokens = input_ids[0].cpu().numpy()
        request: AssistedRequest | None = getattr(self._requests, "last", None)
        if request is None or not request.continued_by(tokens):
            request = self._begin(tokens, None)
        chain = request.draft(tokens) if request is not None else np.empty(0, np.int32)
        return input_ids.new_tensor(np.concatenate([tokens, chain])[None]), None

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: int) -> None:
        """Learn from a forward pass: from its scores, and from what was accepted.

        Args:
            input_ids: int64[1, n], the text with the new tokens: the accepted ones and one more.
            scores: float[1, k + 1, V], after logits processors: of the last token before the path
                of k tokens, and of each token of the path.
            num_matches: number of accepted tokens of the path.
        """
        tokens, accepted = input_ids[0].cpu().numpy(), int(num_matches)
        before, vocab_size = tokens[: -accepted - 1], scores.shape[-1]
        request: AssistedRequest | None = getattr(self._requests, "last", None)
        if request is None or request.vocab_size != vocab_size or not request.continued_by(before):
            request = self._begin(before, vocab_size)
        if request is not None:
            request.observe(tokens, accepted, scores[0])

    def _begin(self, tokens: NDArray[np.int64], vocab_size: int | None) -> AssistedRequest | None:
        self._end_request()
        self._requests.last = self._begin_request(tokens, vocab_size)
        return self._requests.last  # type: ignore[no-any-return]

    def _end_request(self) -> None:
        """End the request of this thread, so that other calls may have its drafters."""
        request: AssistedRequest | None = getattr(self._requests, "last", None)
        if request is not None:
            request.close()
            self._requests.last = None
