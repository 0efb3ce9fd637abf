"""The per-model state of a plug in this process: call plans, engines and budgets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_specplug import forking
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.drafter_sets import MAX_KEPT_SETS
from hf_specplug.exactness import evidence
from hf_specplug.hf import support
from hf_specplug.hf.call import NOT_FOR_THE_MODEL, Call
from hf_specplug.hf.hidden_states import signature
from hf_specplug.hf.plan import PLAIN, CallPlan
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.packed import PackedLinears, packed_linears
from hf_specplug.verify.registry import make_factories


class Session:
    """Plans each call and makes its engine. A session holds no reference to the model.

    Args:
        nodes: number of tokens per forward pass, for the budget; or "auto".
        pack: whether the weights may be kept in a second layout.

    Attributes:
        layer: the layer whose hidden states the drafters need; None if they need none.
        factories: the engines by name, in order of priority.
    """

    def __init__(self, nodes: int | str, pack: bool) -> None:
        self._nodes = nodes
        self._signature = ""
        self.layer: int | None = None
        self._budgets: dict[tuple[str, int, int, int], Budget] = {}
        self._pack = pack
        self._packed: PackedLinears | None = None
        self.factories = make_factories()
        self.lock = threading.RLock()
        forking.register(self)

    def plan(self, call: Call, busy: frozenset[str] = frozenset()) -> CallPlan:
        """Plan a call: its mode (tree, chain or plain) and its engine.

        Args:
            busy: names of engines that are in use.
        """
        gate = support.of_call(call)
        plan = support.of_model(call.model).limited(gate.mode, gate.reason)
        if plan.mode == PLAIN:
            return plan
        for name, factory in self.factories.items():
            if name in busy or not factory.suits(call, plan):
                continue
            own = CallPlan(plan.mode, plan.reason, name, factory.widths)
            own = factory.limit(call, own)
            if own.mode != PLAIN:
                own = evidence.shown(call, own)
            if own.mode in factory.modes:
                return own
        return plan.limited(PLAIN, "no engine can run it")

    @contextmanager
    def planned(self, call: Call, obstacle: str = "") -> Iterator[CallPlan]:
        """Context manager that plans a call and acquires its engine while the call runs.

        If another call uses the preferred engine, the next suitable one is taken.

        Args:
            obstacle: a reason to run plainly that the model's inputs do not show; "" if none.
        """
        plan = CallPlan(PLAIN, obstacle) if obstacle else self.plan(call)
        busy = frozenset[str]()
        while plan.mode != PLAIN and not self.factories[plan.engine].acquire():
            busy |= {plan.engine}
            plan = self.plan(call, busy)
        try:
            yield plan
        finally:
            if plan.mode != PLAIN:
                self.factories[plan.engine].release()

    def after_fork(self) -> None:
        """Do nothing: only the lock belonged to other threads."""

    def engine(self, call: Call, plan: CallPlan) -> Engine:
        """Make the engine that runs a planned call."""
        if self._pack and call.model.device.type == "cpu":
            self._packed = packed_linears(call.model)
        return self.factories[plan.engine].make(call, plan, self._packed, self.layer)

    def signature(self, model: PreTrainedModel) -> str:
        """The signature of the model's hidden states if a drafter needs them, else ""."""
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
        """Run `act` on the engine of a call after prefill, without generating a token.

        Does nothing if such a call is not drafted.

        Args:
            input_ids: int64[rows, n], the prompts.
            act: receives the engine.
            settings: settings of `generate`.
        """

        def run(model: PreTrainedModel, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
            config = rest.pop("generation_config")
            kwargs = {key: rest[key] for key in rest if key not in NOT_FOR_THE_MODEL}
            call = Call(model, input_ids, config, kwargs)
            with self.planned(call) as plan:
                if plan.mode != PLAIN:
                    engine = self.engine(call, plan)
                    try:
                        engine.prefill(input_ids)
                        act(engine)
                    finally:
                        engine.close()
            return input_ids

        _generate_little(model, input_ids, run, settings)

    def warm(
        self,
        model: PreTrainedModel,
        max_length: int,
        rows: int,
        plug: Any,
        settings: dict[str, Any],
    ) -> tuple[int, float]:
        """Do the one-off work for calls of up to `max_length` tokens in advance.

        Args:
            rows: number of sequences of the calls.
            plug: decodes a few tokens, so that everything that decoding needs is compiled; a copy,
                as it learns from them.
            settings: settings of `generate`.

        Returns:
            (number of captured or compiled forward passes, the time they took in seconds)
        """
        torch.get_num_threads()  # until this call, mkldnn uses its own number in a new thread
        ids = torch.ones((rows, 4), dtype=torch.int64, device=support.device_of(model))
        captured = [(0, 0.0)]

        def act(engine: Engine) -> None:
            engine.warm(max_length)
            captured.append(engine.captured)

        with evidence.unchanged(model):
            _generate_little(model, ids, plug, settings)
            self.on_engine(model, ids, act, **settings)
        return captured[-1]

    def budget(self, plan: CallPlan, drafters: int, drafter_set: int, rows: int = 1) -> Budget:
        """The budget for the calls of one drafter set on the engine of a plan.

        Each set has its own budget: the higher its number, the more calls run concurrently, and the
        longer its forward passes take.

        Args:
            drafters: number of drafters.
            drafter_set: number of the set.
            rows: number of sequences in a forward pass.
        """
        key = plan.engine, drafters, drafter_set, rows
        with self.lock:
            budget = self._budgets.get(key)
            if budget is None:
                budget = Budget(self._nodes, drafters, plan.widths, rows)
                if drafter_set < MAX_KEPT_SETS:
                    self._budgets[key] = budget
            return budget


def _generate_little(
    model: PreTrainedModel, input_ids: torch.Tensor, method: Any, settings: dict[str, Any]
) -> None:
    """Run `generate` with a decoding method for 2 new tokens, unless `settings` say otherwise."""
    arguments = {"max_new_tokens": 2, **settings, "do_sample": False, "custom_generate": method}
    type(model).generate(model, input_ids, attention_mask=torch.ones_like(input_ids), **arguments)
