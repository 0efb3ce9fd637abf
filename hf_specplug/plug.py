"""SpecPlug: what each `generate` call is given, and what is kept between calls."""

from __future__ import annotations

import copy
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.streamers import BaseStreamer

from hf_specplug import handover
from hf_specplug.chain import Chain
from hf_specplug.datastore.building.growing import GrowingStore
from hf_specplug.datastore.opening import open_all
from hf_specplug.datastore.store import Datastore
from hf_specplug.decode import begin, decode
from hf_specplug.drafters.contract import Context, Drafter
from hf_specplug.drafters.registry import create, hidden_layer
from hf_specplug.drafters.store_drafter import reader
from hf_specplug.drafting import precompile, state
from hf_specplug.drafting.budget import Budget, check_nodes
from hf_specplug.drafting.drafter_sets import DrafterSet, DrafterSets
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError
from hf_specplug.hf.cache import CHAIN, PLAIN
from hf_specplug.published import completed, search_class
from hf_specplug.session import Session
from hf_specplug.telemetry.history import History
from hf_specplug.telemetry.stats import Stats
from hf_specplug.telemetry.trace import Trace
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.rejection import verifier_class

logger = logging.getLogger("hf_specplug")

_NOT_SAVED = "_drafter_sets _sessions _chains _history _tokenizer _growing _attached"
DEFAULT_DRAFTERS = ("context", "recycling", "stand", "gumbel")


class SpecPlug(CandidateGenerator):  # type: ignore[misc]
    """Drafts for `model.generate`: the same output in fewer forward passes.

    Use `attach(model)`; or, without touching the model, `model.generate(...,
    custom_generate=SpecPlug())`. One plug drafts any number of calls at the same time, from
    several threads, and carries what its drafters learn from call to call.

    Args:
        drafters: names or `Drafter` objects, in the order of their source bits.
        nodes: tokens per forward pass, the last accepted one included; "auto" fits them to the
            device. A fixed number is for measurements.
        pack: on a CPU, keep a second copy of the weights in a layout that is faster for a few
            tokens, if memory allows; False to save it, or to measure drafting alone.
        datastores: folders that `specplug build` made, or opened ones, to draft from.
        tokenizer: the model's, to refuse datastores that another one made, and to show traces.
        published: "aded", "rasd", "stand" or "token-recycling" drafts as that paper does.
        verification: of sampled text: "seeded" gives the tokens that plain `generate` draws with
            the same seed; "rejection" draws drafts and tokens from the same distribution with other
            random numbers.

    Attributes:
        stats: what was drafted, accepted and spent since the last `stats.reset()`.
        mixer: how far each drafter is believed; learned from call to call.

    Raises:
        OptionError: an option has a value that cannot be used.

    Example:
        >>> plug = SpecPlug(drafters=["context"], nodes=8)
        >>> plug.stats.forwards
        0
    """

    def __init__(
        self,
        drafters: Iterable[str | Drafter] | str | Drafter = DEFAULT_DRAFTERS,
        nodes: int | str = "auto",
        published: str | None = None,
        pack: bool = True,
        datastores: Iterable[str | os.PathLike[str] | Datastore] = (),
        tokenizer: Any = None,
        verification: str = "seeded",
    ) -> None:
        check_nodes(nodes)
        verifier_class(verification, published)
        self.drafters = completed(create(drafters), published)
        hidden_layer(self.drafters)
        precompile.start(precompile.built_in(self.drafters))
        self.mixer = Mixer([drafter.name for drafter in self.drafters])
        self.nodes = nodes
        self.published = published
        self.verification = verification
        self.pack = pack
        self.stats = Stats()
        self._warned: set[str] = set()
        self._reset_session()
        self._tokenizer = tokenizer
        for store in open_all(datastores, tokenizer):
            self.add_datastore(store)

    def _reset_session(self) -> None:
        """State that belongs to this process, or to a call in progress."""
        self._drafter_sets = DrafterSets()
        self._sessions: WeakKeyDictionary[PreTrainedModel, Session] = WeakKeyDictionary()
        self._chains = threading.local()
        self._history: History | None = None
        self._tokenizer = None
        self._growing: GrowingStore | None = None
        self._attached: Callable[[], PreTrainedModel | None] = lambda: None  # no model

    def __getstate__(self) -> dict[str, Any]:
        here = _NOT_SAVED.split()
        return {name: value for name, value in self.__dict__.items() if name not in here}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        self._reset_session()

    def __deepcopy__(self, memo: dict[int, Any]) -> SpecPlug:
        twin = memo[id(self)] = object.__new__(type(self))
        with self._drafter_sets.lock:  # calls in progress change what is copied
            twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    @property
    def config(self) -> Any:
        """Read only where transformers takes `assistant_model` for a model: not attached."""
        raise AttributeError(
            "a SpecPlug drafts for a model that it is attached to: call attach(model, ...) first, "
            "or pass custom_generate=SpecPlug() to generate"
        )

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        inputs_tensor: torch.Tensor | None = None,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """The decoding method that `generate(custom_generate=plug)` calls."""
        if streamer is None:
            streamer = handover.streamer_of_caller()
        arguments: dict[str, Any] = {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "generation_config": generation_config,
        }
        session = self._session(model)
        with session.chosen(model, input_ids, generation_config, model_kwargs) as (choice, static):
            if choice.reason:
                self.record_fallback(choice.reason)
            drafter_set = None if choice.mode == PLAIN else self._acquire()
            if drafter_set is None:
                return handover.plain(model, input_ids, arguments, streamer, model_kwargs)
            try:
                verifier = verifier_class(self.verification)(
                    input_ids, logits_processor, stopping_criteria, generation_config, streamer
                )
                engine = session.engine(model, generation_config, model_kwargs, choice, static)
                signature = session.signature(model)
                context = handover.context(model, input_ids, inputs_tensor, signature)
                budget = session.budget(static, len(drafter_set.drafters), drafter_set.number)
                chain = choice.mode == CHAIN
                cache = self._draft(verifier, engine, budget, context, drafter_set, chain)
            finally:
                self._drafter_sets.release(drafter_set)
        if self._growing is not None:
            self._growing.add(context.tokens[context.prompt_length :])
        if streamer is not None:
            streamer.end()
        return handover.result(model, verifier, generation_config, cache)

    def trace(self, tokenizer: Any = None) -> Trace:
        """What was drafted in the last drafted call, by whom, and what was accepted.

        Args:
            tokenizer: the model's, to show text; by default the one that the plug was made with.

        Returns:
            The call's last 4096 steps as they are now, to be printed, shown in a notebook, cut
            (`trace[3:6]`) and saved (`trace.save("trees.html")`).

        Raises:
            PlotError: nothing has been drafted yet.
        """
        return Trace.of(self._history, self._tokenizer if tokenizer is None else tokenizer)

    def add_datastore(
        self, store: str | os.PathLike[str] | Datastore, tokenizer: Any = None
    ) -> None:
        """Draft from a datastore, too, from the next call on.

        Args:
            store: its folder, or an opened one.
            tokenizer: the model's; a store that another one made is then refused.

        Raises:
            StoreError: it cannot be opened, or is refused.
        """
        (opened,) = open_all([store], tokenizer)
        with self._drafter_sets.lock:
            kind = opened.manifest.kind
            for drafter in self.drafters:
                if kind in drafter.kinds:
                    drafter.add(opened)
                    self.drafters = [*self.drafters]  # those of further seats are made anew
                    return
            new = reader(kind)
            new.add(opened)
            self.drafters = create([*self.drafters, new])
            learned = self.mixer.state_dict()
            self.mixer = Mixer([drafter.name for drafter in self.drafters])
            self.mixer.load_state_dict(learned)

    def record_to(
        self, path: str | os.PathLike[str], tokenizer: Any, max_tokens: int = 10_000_000
    ) -> GrowingStore:
        """From now on append what calls generate to a datastore, for later calls to draft from.

        Nothing is recorded unless this is called. Prompts are not; answers are, as token ids.

        Args:
            path: its folder; made if it is not there.
            tokenizer: the model's.
            max_tokens: kept at most; the oldest go.

        Returns:
            The store; `flush()` writes what is in memory, which otherwise happens now and then,
            and at the end of the process.

        Raises:
            StoreError: the folder is no datastore, or one of another tokenizer.
        """
        self._growing = GrowingStore(path, tokenizer, max_tokens)
        return self._growing

    def warmup(
        self, model: PreTrainedModel | None = None, max_length: int = 1024, **settings: Any
    ) -> float:
        """Do ahead what the first calls would wait for: compile, capture, lay out weights.

        Args:
            model: if the plug is not attached.
            max_length: tokens of prompt and answer that calls will have at most.
            settings: of `generate`, if calls will have them: `cache_implementation`, ...

        Returns:
            The seconds it took.

        Raises:
            OptionError: there is no model, or no positive `max_length`.
        """
        model = self._attached() if model is None else model
        if model is None:
            raise OptionError("warmup needs a model: attach(model) first, or warmup(model)")
        if not isinstance(max_length, int) or max_length < 1:
            raise OptionError(f"max_length must be a number of tokens from 1, not {max_length!r}")

        start = time.perf_counter()
        precompile.rehearse(precompile.built_in(self.drafters))
        session, scratch = self._session(model), copy.deepcopy(self)  # which learns for itself
        with ThreadPoolExecutor(1) as apart:  # threads of OpenMP that stay would slow others down
            prepared = apart.submit(session.warm, model, max_length, scratch, settings).result()
        with self._drafter_sets.lock:
            self.stats.add_captured(*prepared)
        return time.perf_counter() - start

    def _acquire(self) -> DrafterSet | None:
        """For one call; None if there can be no drafters for it."""
        try:
            return self._drafter_sets.acquire(self.drafters, self.mixer)
        except Exception as error:
            self.record_fallback(f"a drafter cannot be copied for calls at the same time ({error})")
            return None

    def _session(self, model: PreTrainedModel) -> Session:
        with self._drafter_sets.lock:
            if model not in self._sessions:
                self._sessions[model] = Session(self.nodes, self.pack)
            session = self._sessions[model]
            session.layer = hidden_layer(self.drafters)
            return session

    def _draft(
        self,
        verifier: Verifier,
        engine: Engine,
        budget: Budget,
        context: Context,
        drafter_set: DrafterSet,
        chain: bool,
    ) -> Any:
        """Run the loop until `verifier` is finished; return the cache."""
        stats, lock = Stats(calls=1), self._drafter_sets.lock
        try:
            search = self._begin(context, drafter_set.drafters, drafter_set.mixer, stats)
            history = self._history = History(search.names)
            decode(engine, verifier, search, context, budget, stats, history, chain, lock)
            return engine.cache
        finally:
            stats.add_captured(*engine.prepared)
            if engine.degraded_reason:
                stats.fallbacks[engine.degraded_reason] += 1
                self._warn(engine.degraded_reason)
            with lock:
                self.stats.add(stats)
            engine.close()

    def _begin(
        self, context: Context, drafters: list[Drafter], mixer: Mixer, stats: Stats
    ) -> TreeSearch:
        def on_error(drafter: Drafter, error: Exception) -> None:
            reason = f"{type(error).__name__}: {error}"
            stats.dropped[drafter.name] = reason
            self._warn(f"drafter {drafter.name!r} is dropped for this call ({reason})")

        make = search_class(self.published)
        with self._drafter_sets.lock:
            search = make(drafters, mixer, context.vocab_size, on_error)
            search.suppressed = context.suppressed
            begin(search, context)
        return search

    def record_fallback(self, reason: str) -> None:
        """Count a call that was run as chain or plain, and say so once."""
        with self._drafter_sets.lock:
            self.stats.fallbacks[reason] += 1
        self._warn(f"not drafted as a tree: {reason}")

    def _warn(self, message: str) -> None:
        kind = re.sub(r"\d+", "#", message)  # a batch of 3 is no news after one of 2
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)

    def get_candidates(
        self, input_ids: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The likeliest single path after `input_ids` int64[1, n], as int64[1, n + k], and None."""
        tokens = input_ids[0].cpu().numpy()
        chain: Chain | None = getattr(self._chains, "last", None)
        if chain is None or not chain.continued_by(tokens):
            chain = self._chains.last = self._new_chain(tokens)
        draft = torch.from_numpy(chain.draft(tokens, Budget(self.nodes).limit))
        return torch.cat([input_ids, draft[None].to(input_ids.device)], dim=1), None

    def _new_chain(self, tokens: NDArray[np.int64]) -> Chain:
        """This loop shows no outputs of the model, nor its vocabulary: only copying can draft."""
        with self._drafter_sets.lock:
            copying = [d.for_another_call() for d in self.drafters if not d.needs]
        context = Context(tokens, (1 << 31) - 1)
        mixer = Mixer([drafter.name for drafter in copying])
        search = self._begin(context, copying, mixer, self.stats)
        return Chain(context, search, self._drafter_sets.lock)

    def update_candidate_strategy(
        self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int
    ) -> None:
        """Nothing to do: what was accepted shows in the next `get_candidates`."""

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write what drafters and mixer have learned across calls to a safetensors file."""
        with self._drafter_sets.lock:
            states = state.learned(self.mixer, self.drafters)
        state.save(path, states)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Take back what `save_state` wrote; drafters that the file does not name stay as they are.

        Raises:
            StateError: the file is no saved state, or does not fit these drafters. Nothing is
                changed.
        """
        states = state.load(path)
        with self._drafter_sets.lock:
            self.drafters = state.taught(states, self.mixer, self.drafters)

    def __repr__(self) -> str:
        return f"SpecPlug(drafters={[d.name for d in self.drafters]}, nodes={self.nodes!r})"
