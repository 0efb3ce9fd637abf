"""Runs one call, from the inputs that `generate` prepared to the value that it returns."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from hf_specplug.batch import run as batch
from hf_specplug.datastore.building.growing import GrowingStore
from hf_specplug.decode import Decoding, decode
from hf_specplug.drafters.contract import Context, Drafter, TopK, as_text
from hf_specplug.drafters.registry import hidden_layer
from hf_specplug.drafting.assisted import AssistedRequest
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.drafter_sets import DrafterSet
from hf_specplug.drafting.ensemble import Ensemble
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.hf import adapter, suppressed
from hf_specplug.hf.adapter import BaseStreamer
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, CallPlan
from hf_specplug.hf.prompts import remaining_tokens
from hf_specplug.session import Session
from hf_specplug.telemetry.history import CheckedStep, History
from hf_specplug.telemetry.stats import Stats
from hf_specplug.tree import DraftTree
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.outputs import Outputs

logger = logging.getLogger("hf_specplug")

_OF_THIS_PROCESS = frozenset({"sessions", "_budgets", "history", "growing"})
_UNLIMITED = 1 << 31  # tokens, for a text of an unknown model


class Runner:
    """Runs calls, also concurrently from several threads.

    Args:
        ensemble: the drafters, the mixer and the stores.
        stats: the statistics of all calls.
        nodes, pack: see `SpecPlug`.
        search: grows the trees.
        verifier: accepts their tokens.

    Attributes:
        sessions: the session of each model.
        history: the last steps of the last drafted call; None before the first one.
        growing: the store to which answers are appended; None if they are not recorded.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        stats: Stats,
        nodes: int | str,
        pack: bool,
        search: type[TreeSearch],
        verifier: type[Verifier],
    ) -> None:
        self._ensemble = ensemble
        self._stats = stats
        self._nodes, self._pack = nodes, pack
        self._search = search
        self._verifier = verifier
        self._warned: set[str] = set()
        self._begin_process()

    def _begin_process(self) -> None:
        """Set the attributes that belong to this process or to a call in progress."""
        self.sessions: WeakKeyDictionary[PreTrainedModel, Session] = WeakKeyDictionary()
        self._budgets: dict[tuple[int, int, int], Budget] = {}  # of the assisted loop
        self.history: History | None = None
        self.growing: GrowingStore | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = vars(self).items()
        return {key: value for key, value in own if key not in _OF_THIS_PROCESS}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        for key, value in saved.items():
            setattr(self, key, value)
        self._begin_process()

    def run(
        self,
        call: Call,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        inputs: torch.Tensor | None,
        streamer: BaseStreamer | None,
    ) -> Any:
        """Decode one call and build the return value of `generate`.

        Args:
            processors, criteria: as `generate` prepared them.
            inputs: the model's own inputs, if they are not `input_ids`.
            streamer: receives the tokens; None if there is no streamer.
        """
        session = self.session(call.model)
        obstacle = batch.obstacle(call, processors, criteria, self._verifier)
        with session.planned(call, obstacle) as plan:
            if plan.reason:
                self.record_fallback(plan.reason)
            if plan.mode != PLAIN and call.rows > 1:
                return batch.run_rows(
                    self, call, plan, session, processors, criteria, inputs, streamer
                )
            drafter_set = None if plan.mode == PLAIN else self.acquire()
            if drafter_set is None:
                return adapter.plain(call, processors, criteria, streamer)
            try:
                verifier = self._verifier(
                    call.input_ids, processors, criteria, call.config, streamer
                )
                context = self.context(adapter.text_of(call, inputs), call, session)
                cache = self._decode(call, plan, session, verifier, context, drafter_set)
            finally:
                self.release(drafter_set)
        if self.growing is not None:
            self.growing.add(context.tokens[context.prompt_length :])
        if streamer is not None:
            streamer.end()
        return adapter.result(call, verifier.input_ids, verifier.scores, verifier.logits, cache)

    def session(self, model: PreTrainedModel) -> Session:
        """The session of a model, made on first use."""
        with self._ensemble.lock:
            if model not in self.sessions:
                self.sessions[model] = Session(self._nodes, self._pack)
            session = self.sessions[model]
            session.layer = hidden_layer(self._ensemble.drafters)
            return session

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while drafters propose and observe."""
        return self._ensemble.lock  # type: ignore[no-any-return]

    def acquire(self) -> DrafterSet | None:
        """Acquire a set of drafters for one call; None if a drafter cannot be copied."""
        try:
            return self._ensemble.acquire()
        except Exception as error:
            self.record_fallback(f"a drafter cannot be copied for calls at the same time ({error})")
            return None

    def release(self, drafter_set: DrafterSet) -> None:
        """Return the drafters of a call that has ended."""
        self._ensemble.release(drafter_set)

    def context(self, text: NDArray[np.int64], call: Call, session: Session) -> Context:
        """The text to draft from. Ids that are not tokens of the text are -1."""
        vocab, excluded = adapter.vocab_size(call.model), suppressed.tokens(call.model)
        tokens = as_text(text, vocab, excluded)
        return Context(tokens, vocab, session.signature(call.model), excluded)

    def _decode(
        self,
        call: Call,
        plan: CallPlan,
        session: Session,
        verifier: Verifier,
        context: Context,
        drafter_set: DrafterSet,
    ) -> Any:
        """Run the decoding loop until `verifier` is finished; returns the KV cache."""
        with self.running(call, plan, session) as (engine, stats):
            budget = session.budget(plan, len(drafter_set.drafters), drafter_set.number)
            search = self.begin_search(context, drafter_set.drafters, drafter_set.mixer, stats)
            history = self.history = History(search.names)
            chain = plan.mode == CHAIN
            decode(
                Decoding(
                    engine, verifier, search, context, budget, stats, history, chain, self.lock
                )
            )
            return engine.cache

    @contextmanager
    def running(self, call: Call, plan: CallPlan, session: Session) -> Iterator[tuple[Any, Stats]]:
        """Context manager that makes the engine of a call; on exit closes it and counts the call.

        Yields:
            (the engine of the plan, the statistics of this call)
        """
        stats = Stats(calls=1)
        stats.engines[f"{plan.mode}, {plan.engine}"] += 1
        engine = session.engine(call, plan)
        try:
            yield engine, stats
        finally:
            stats.add_captured(*engine.captured)
            if engine.degraded_reason:
                stats.fallbacks[engine.degraded_reason] += 1
                self._warn(engine.degraded_reason)
            with self.lock:
                self._stats.add(stats)
            engine.close()

    def begin_request(
        self, tokens: NDArray[np.int64], vocab_size: int | None, model: PreTrainedModel | None
    ) -> AssistedRequest | None:
        """Begin a request of transformers' own assisted loop; None if nothing can be drafted.

        Args:
            tokens: int64[n], the text so far.
            vocab_size: the width of the model's scores; None if none have been seen.
            model: the model that the plug is attached to, if any.
        """
        if model is not None and vocab_size not in (None, adapter.vocab_size(model)):
            model = None  # the scores are those of another model
        if vocab_size is None and model is not None:
            vocab_size = adapter.vocab_size(model)
        if vocab_size is None:
            return None
        drafter_set = self.acquire()
        if drafter_set is None:
            return None
        excluded = frozenset[int]() if model is None else suppressed.tokens(model)
        context = Context(as_text(tokens, vocab_size, excluded), vocab_size, "", excluded)
        search = self.begin_search(context, drafter_set.drafters, drafter_set.mixer)
        history = self.history = History(search.names)
        key = vocab_size, drafter_set.number, len(search.names)
        budget = self._budgets.setdefault(key, Budget(self._nodes, len(search.names)))

        def report(root: int, tree: DraftTree, visited: Any, emitted: Any) -> None:
            with self._ensemble.lock:
                self._stats.calls += not history.count
                self._stats.observe(tree, visited, search.names)
            history.append(CheckedStep(root, tree, visited, emitted))

        room = _UNLIMITED if model is None else remaining_tokens(model, tokens.tolist())
        return AssistedRequest(
            context,
            search,
            budget,
            self._ensemble,
            drafter_set,
            len(tokens) + room,
            _likeliest,
            report,
        )

    def begin_search(
        self, context: Context, drafters: list[Drafter], mixer: Mixer, stats: Stats | None = None
    ) -> TreeSearch:
        """Begin a search: each drafter begins with the text of `context`.

        Args:
            stats: records dropped drafters; by default the statistics of all calls.
        """

        def on_error(drafter: Drafter, error: Exception) -> None:
            reason = f"{type(error).__name__}: {error}"
            (stats or self._stats).dropped[drafter.name] = reason
            self._warn(f"drafter {drafter.name!r} is dropped for this call ({reason})", error)

        with self._ensemble.lock:
            search = self._search(drafters, mixer, context.vocab_size, on_error)
            search.begin(context)
        return search

    def record_fallback(self, reason: str) -> None:
        """Count a call that falls back to a chain or plain decoding; log the reason once."""
        with self._ensemble.lock:
            self._stats.fallbacks[reason] += 1
        self._warn(f"not drafted as a tree: {reason}")

    def _warn(self, message: str, error: Exception | None = None) -> None:
        """Log a warning once per kind of message, with the traceback of `error` if given."""
        kind = re.sub(r"\d+", "#", message)  # "a batch of 3" and "a batch of 2" are of one kind
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, exc_info=error)


def _likeliest(scores: torch.Tensor) -> TopK:
    """The likeliest tokens by processed scores [T, V], without those that processors excluded."""
    topk = Outputs(scores).topk()
    return TopK(np.where(topk.probs > 0, topk.ids, -1), topk.probs)
