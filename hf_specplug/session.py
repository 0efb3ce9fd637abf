"""What a plug knows and keeps of one model, in this process: how to run it, and at what cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from hf_specplug import forking
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.drafter_sets import KEPT
from hf_specplug.errors import OptionError
from hf_specplug.exactness import evidence
from hf_specplug.hf import support
from hf_specplug.hf.cache import PLAIN, TREE
from hf_specplug.hf.hidden_states import HiddenStateHook, signature
from hf_specplug.hf.support import Support
from hf_specplug.verify.eager import EagerEngine
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.packed import PackedLinears, packed_linears
from hf_specplug.verify.static import PADDED_WIDTHS, StaticEngine, compile_config
from hf_specplug.verify.static_forward import StaticForward

_NOT_FOR_THE_MODEL = ("logits_processor", "stopping_criteria", "inputs_tensor", "streamer")


class Session:
    """Chooses and makes the engine of each call. It holds no reference to the model.

    Args:
        nodes: for the budget.
        pack: whether weights may be kept in another layout too.

    Attributes:
        layer: whose hidden states drafters want; None if none does.
    """

    def __init__(self, nodes: int | str, pack: bool) -> None:
        self._nodes = nodes
        self._signature = ""
        self.layer: int | None = None
        self._budgets: dict[tuple[bool, int, int], Budget] = {}
        self._pack = pack
        self._packed: PackedLinears | None = None
        self._forward = StaticForward()
        self._forward_of = 0  # the thread of the call that uses it
        self.lock = threading.RLock()
        forking.register(self)

    def choose(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        may_be_static: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Support, bool]:
        """Tree, chain or plain for a call, and whether the static engine is to run it."""
        choice = support.of_model(model)
        static = choice.mode == TREE and support.is_static(model, generation_config, model_kwargs)
        static = static and may_be_static and not self._forward.failure
        if choice.mode != PLAIN:
            of_call = support.of_call(model, input_ids, generation_config, model_kwargs, static)
            if of_call.mode == PLAIN or choice.mode == TREE:
                choice = of_call
        if choice.mode != PLAIN:
            choice = evidence.shown(model, choice, input_ids, generation_config, model_kwargs)
        return choice, static and choice.mode == TREE

    @contextmanager
    def chosen(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> Iterator[tuple[Support, bool]]:
        """What is chosen, for the time of a call.

        The static engine runs one call at a time: who comes meanwhile takes the eager one, or
        whatever is right without it.
        """
        choice, static = self.choose(model, input_ids, config, **model_kwargs)
        if static and not self._reserve():
            choice, static = self.choose(model, input_ids, config, False, **model_kwargs)
        try:
            yield choice, static
        finally:
            if static:
                self._forward_of = 0

    def _reserve(self) -> bool:
        """Take the static engine's forward pass, if it is free."""
        with self.lock:
            if self._forward_of:
                return False
            self._forward_of = threading.get_ident()
            return True

    def after_fork(self) -> None:
        """The calls of other threads are over; what they left is not to be trusted."""
        if self._forward_of not in (0, threading.get_ident()):
            self._forward, self._forward_of = StaticForward(), 0

    def engine(
        self,
        model: PreTrainedModel,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
        mode: Support,
        static: bool,
    ) -> Engine:
        """What runs a call of the given kind."""
        if self._pack and model.device.type == "cpu":
            self._packed = packed_linears(model)
        packed = self._packed
        engine: Engine
        if static:
            if compile_config(model, config) is not None:
                packed = None
            engine = StaticEngine(model, config, model_kwargs, mode, self._forward, packed)
        else:
            engine = EagerEngine(model, config, model_kwargs, mode, packed)
        if self.layer is not None:
            try:
                engine.hidden_states = HiddenStateHook(model, self.layer)
            except OptionError as error:  # nothing is drafted by states, then
                engine.degraded_reason = str(error)
        return engine

    def signature(self, model: PreTrainedModel) -> str:
        """Tells the model from others, if a drafter looks at its hidden states; "" if none does."""
        if self.layer is not None and not self._signature:
            self._signature = signature(model)
        return self._signature

    def on_engine(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        act: Callable[[Engine], None],
        **settings: Any,
    ) -> None:
        """Let `act` use the engine of a call after its prompt; nothing is generated.

        Args:
            settings: of `generate`. Where a call would not be drafted, nothing happens.
        """

        def run(model: PreTrainedModel, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
            config = rest.pop("generation_config")
            kwargs = {key: rest[key] for key in rest if key not in _NOT_FOR_THE_MODEL}
            with self.chosen(model, input_ids, config, kwargs) as (choice, static):
                if choice.mode != PLAIN:
                    engine = self.engine(model, config, kwargs, choice, static)
                    try:
                        engine.prefill(input_ids, 1)
                        act(engine)
                    finally:
                        engine.close()
            return input_ids

        _generate_little(model, input_ids, run, settings)

    def warm(
        self, model: PreTrainedModel, max_length: int, plug: Any, settings: dict[str, Any]
    ) -> tuple[int, float]:
        """Do now what calls of up to `max_length` tokens would wait for once.

        Args:
            plug: decodes a few tokens, so that all that decoding needs is compiled.
            settings: of `generate`.

        Returns:
            Forward passes that were captured or compiled, and the seconds that it took.
        """
        torch.get_num_threads()  # in a new thread mkldnn takes its own number of them until asked
        ids = torch.ones((1, 4), dtype=torch.int64, device=support.device_of(model))
        prepared = [(0, 0.0)]

        def act(engine: Engine) -> None:
            engine.warm(max_length)
            prepared.append(engine.prepared)

        with evidence.unchanged(model):
            _generate_little(model, ids, plug, settings)
            self.on_engine(model, ids, act, **settings)
        return prepared[-1]

    def budget(self, static: bool, drafters: int, drafter_set: int) -> Budget:
        """How many tokens pay, on either engine, for the calls with a drafter set.

        Each set has its own: the higher its number, the more calls there are beside it, and so the
        other times it finds.

        Args:
            drafters: how many there are.
        """
        key = static, drafters, drafter_set
        with self.lock:
            budget = self._budgets.get(key)
            if budget is None:
                budget = Budget(self._nodes, drafters, PADDED_WIDTHS if static else None)
                if drafter_set < KEPT:
                    self._budgets[key] = budget
            return budget


def _generate_little(
    model: PreTrainedModel, input_ids: torch.Tensor, method: Any, settings: dict[str, Any]
) -> None:
    every = {"max_new_tokens": 2, **settings, "do_sample": False, "custom_generate": method}
    type(model).generate(model, input_ids, attention_mask=torch.ones_like(input_ids), **every)
