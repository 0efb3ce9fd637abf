"""SpecPlug: the decoding method for `generate`, and the state kept between calls."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from hf_specplug.datastore.building.growing import GrowingStore
from hf_specplug.datastore.opening import open_all
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create, hidden_layer
from hf_specplug.drafting import precompile
from hf_specplug.drafting.assisted import AssistedCandidates, AssistedRequest
from hf_specplug.drafting.budget import check_nodes
from hf_specplug.drafting.ensemble import Ensemble
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.errors import OptionError
from hf_specplug.hf import adapter
from hf_specplug.hf.adapter import BaseStreamer, CandidateGenerator
from hf_specplug.hf.call import Call
from hf_specplug.published import completed, search_class
from hf_specplug.runner import Runner
from hf_specplug.telemetry.stats import Stats
from hf_specplug.telemetry.trace import Trace
from hf_specplug.verify.rejection import verifier_class

logger = logging.getLogger("hf_specplug")

DEFAULT_DRAFTERS = ("context", "recycling", "stand", "frequency", "sparse", "gumbel")
_OF_THIS_PROCESS = frozenset({"_requests", "_tokenizer", "_model"})


class SpecPlug(AssistedCandidates, CandidateGenerator):  # type: ignore[misc]
    """Drafts for `model.generate`: the same output in fewer forward passes.

    Use `attach(model)`; or, without touching the model, `model.generate(...,
    custom_generate=SpecPlug())`. One plug can draft for any number of concurrent calls from
    several threads. Its drafters keep what they learn from call to call.

    Args:
        drafters: names or `Drafter` objects, in the order of their source bits.
        nodes: number of tokens per forward pass, including the last accepted one. "auto" fits it
            to the device. A fixed number is for measurements.
        pack: on a CPU, keep a second copy of the weights in a layout that is faster for a few
            tokens, if memory allows. False saves this memory, or measures drafting alone.
        datastores: datastores to draft from: folders made by `specplug build`, or opened stores.
        tokenizer: the model's tokenizer, to refuse datastores of another tokenizer, to match given
            passages as text, and to show traces.
        published: "aded", "dresd", "hierarchy", "rasd", "rest", "stand" or "token-recycling" drafts
            as that paper does.
        verification: how sampled text is verified. "seeded" gives the tokens that plain `generate`
            draws with the same seed. "rejection" draws drafts and tokens from the same distribution
            with other random numbers; of the papers' drafts, it takes those of "stand".

    Attributes:
        stats: counts of drafted and accepted tokens, and times, since the last `stats.reset()`.
        mixer: how much to trust each drafter; learned from call to call.

    Raises:
        OptionError: an option has an invalid value.

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
        verifier = verifier_class(verification, published)
        made = completed(create(drafters), published)
        hidden_layer(made)
        precompile.start(precompile.built_in(made))
        self.stats = Stats()
        self._ensemble = Ensemble(made)
        self._runner = Runner(
            self._ensemble, self.stats, nodes, pack, search_class(published), verifier
        )
        self.nodes = nodes
        self.published = published
        self.verification = verification
        self.pack = pack
        self._begin_process()
        self._tokenizer = tokenizer
        self._ensemble.add_stores(open_all(datastores, tokenizer))

    def _begin_process(self) -> None:
        """Set the attributes that belong to this process or to a call in progress."""
        super().__init__()
        self._tokenizer = None
        self._model: Callable[[], PreTrainedModel | None] = lambda: None

    def __getstate__(self) -> dict[str, Any]:
        own = vars(self).items()
        return {name: value for name, value in own if name not in _OF_THIS_PROCESS}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            setattr(self, name, value)
        self._begin_process()

    def __deepcopy__(self, memo: dict[int, Any]) -> SpecPlug:
        twin = memo[id(self)] = object.__new__(type(self))
        with self._ensemble.lock:  # calls in progress change the copied state
            twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    @property
    def drafters(self) -> list[Drafter]:
        return self._ensemble.drafters

    @property
    def mixer(self) -> Mixer:
        return self._ensemble.mixer

    @property
    def model(self) -> PreTrainedModel | None:
        """The model that the plug is attached to, held by a weak reference; else None."""
        return self._model()

    @model.setter
    def model(self, model: PreTrainedModel) -> None:
        self._model = ref(model)

    @property
    def config(self) -> Any:
        """Raise an error: transformers reads this attribute only if the plug is not attached.

        It then takes `assistant_model` for a model.
        """
        raise AttributeError(
            "a SpecPlug drafts for a model that it is attached to: call attach(model, ...) first, "
            "or pass custom_generate=SpecPlug() to generate"
        )

    def __call__(self, model: PreTrainedModel, input_ids: torch.Tensor, **arguments: Any) -> Any:
        """The decoding method that `generate(custom_generate=plug)` calls."""
        if arguments.get("streamer") is None:
            arguments["streamer"] = adapter.streamer_of_caller()
        return self.run(model, input_ids, **arguments)

    def run(
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
        """Decode one call. The arguments are those of transformers' decoding methods."""
        self._end_request()  # of this thread's assisted loop: it has ended, too
        return self._runner.run(
            Call(model, input_ids, generation_config, model_kwargs),
            logits_processor,
            stopping_criteria,
            inputs_tensor,
            streamer,
        )

    def record_fallback(self, reason: str) -> None:
        """Count a call that falls back to a chain or plain decoding; log the reason once."""
        self._runner.record_fallback(reason)

    def trace(self, tokenizer: Any = None) -> Trace:
        """The trees of the last drafted call: candidates, their drafters, and what was accepted.

        Args:
            tokenizer: the model's tokenizer, to show text; by default the plug's own.

        Returns:
            A snapshot of the call's last 4096 steps; in a batch, those of its first row. It can be
            printed, shown in a notebook, sliced (`trace[3:6]`) and saved
            (`trace.save("trees.html")`).

        Raises:
            PlotError: nothing has been drafted yet.
        """
        return Trace.of(self._runner.history, self._tokenizer if tokenizer is None else tokenizer)

    def add_datastore(
        self, store: str | os.PathLike[str] | Datastore, tokenizer: Any = None
    ) -> None:
        """Add a datastore to draft from, starting with the next call.

        Args:
            store: the folder of a datastore, or an opened one.
            tokenizer: the model's tokenizer; a datastore of another tokenizer is then refused.

        Raises:
            StoreError: the datastore cannot be opened or is refused.
        """
        self._ensemble.add_stores(open_all([store], tokenizer))

    def record_to(
        self, path: str | os.PathLike[str], tokenizer: Any, max_tokens: int = 10_000_000
    ) -> GrowingStore:
        """Append the generated text of all further calls to a datastore for later calls.

        Nothing is recorded unless this method is called. Answers are recorded as token ids; prompts
        are not recorded.

        Args:
            path: folder of the datastore; created if it does not exist.
            tokenizer: the model's tokenizer.
            max_tokens: maximum number of tokens to keep; the oldest are deleted.

        Returns:
            The store. `flush()` writes the tokens in memory to disk. Otherwise they are written
            from time to time and at the end of the process.

        Raises:
            StoreError: the folder is not a datastore, or is one of another tokenizer.
        """
        self._runner.growing = GrowingStore(path, tokenizer, max_tokens)
        return self._runner.growing

    def warmup(
        self,
        model: PreTrainedModel | None = None,
        max_length: int = 1024,
        rows: int = 1,
        **settings: Any,
    ) -> float:
        """Do the one-off work of the first calls in advance: compile, capture, lay out weights.

        Args:
            model: the model, if the plug is not attached.
            max_length: maximum number of tokens of prompt and answer in later calls.
            rows: number of sequences in later calls, prompts times samples.
            settings: settings of `generate` that later calls will have: `cache_implementation`, ...

        Returns:
            The time it took, in seconds.

        Raises:
            OptionError: there is no model, or no positive `max_length` or `rows`.
        """
        model = self.model if model is None else model
        if model is None:
            raise OptionError("warmup needs a model: attach(model) first, or warmup(model)")
        if not all(isinstance(each, int) and each > 0 for each in (max_length, rows)):
            raise OptionError(f"{max_length=}, {rows=}: both must be whole numbers from 1")
        start = time.perf_counter()
        precompile.rehearse(precompile.built_in(self.drafters))
        session = self._runner.session(model)
        with ThreadPoolExecutor(1) as pool:  # OpenMP threads that stay would slow others down
            done = pool.submit(session.warm, model, max_length, rows, copy.deepcopy(self), settings)
        with self._ensemble.lock:
            self.stats.add_captured(*done.result())
        return time.perf_counter() - start

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write what the drafters and the mixer have learned to a safetensors file."""
        self._ensemble.save_state(path)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Load a file of `save_state`. Drafters that are not in the file keep their state.

        Raises:
            StateError: the file is not a saved state, or does not fit these drafters. Nothing
                changes then.
        """
        self._ensemble.load_state(path)

    def _begin_request(
        self, tokens: NDArray[np.int64], vocab_size: int | None
    ) -> AssistedRequest | None:
        return self._runner.begin_request(tokens, vocab_size, self.model)

    def __repr__(self) -> str:
        return f"SpecPlug(drafters={[d.name for d in self.drafters]}, nodes={self.nodes!r})"
