"""What a plug keeps of one model, in this process: how to run its calls, and at what cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_specplug import forking
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.drafter_sets import KEPT
from hf_specplug.exactness import evidence
from hf_specplug.hf import support
from hf_specplug.hf.call import NOT_FOR_THE_MODEL, Call
from hf_specplug.hf.hidden_states import signature
from hf_specplug.hf.plan import PLAIN, CallPlan
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.engines import make_factories
from hf_specplug.verify.packed import PackedLinears, packed_linears


class Session:
    """Plans each call and makes its engine. It holds no reference to the model.

    Args:
        nodes: for the budget.
        pack: whether weights may be kept in a second layout.

    Attributes:
        layer: whose hidden states drafters need; None if none does.
        factories: the engines by name, in order of priority.
    """

    def __init__(self, nodes: int | str, pack: bool) -> None:
        self._nodes = nodes
        self._signature = ""
        self.layer: int | None = None
        self._budgets: dict[tuple[str, int, int], Budget] = {}
        self._pack = pack
        self._packed: PackedLinears | None = None
        self.factories = make_factories()
        self.lock = threading.RLock()
        forking.register(self)

    def plan(self, call: Call, busy: frozenset[str] = frozenset()) -> CallPlan:
        """How to run a call: as tree, chain or plainly, and on which engine.

        Args:
            busy: names of engines that cannot run it now.
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
    def planned(self, call: Call) -> Iterator[CallPlan]:
        """The plan of a call, with its engine acquired for as long as the call runs.

        If another call uses the engine that suits best, the next one is taken.
        """
        plan, busy = self.plan(call), frozenset[str]()
        while plan.mode != PLAIN and not self.factories[plan.engine].acquire():
            busy |= {plan.engine}
            plan = self.plan(call, busy)
        try:
            yield plan
        finally:
            if plan.mode != PLAIN:
                self.factories[plan.engine].release()

    def after_fork(self) -> None:
        """Only the lock belonged to other threads."""

    def engine(self, call: Call, plan: CallPlan) -> Engine:
        """The engine that runs a planned call."""
        if self._pack and call.model.device.type == "cpu":
            self._packed = packed_linears(call.model)
        return self.factories[plan.engine].make(call, plan, self._packed, self.layer)

    def signature(self, model: PreTrainedModel) -> str:
        """Tells the model from others, if a drafter needs its hidden states; else ""."""
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
            settings: of `generate`. Nothing happens if such a call is not drafted.
        """

        def run(model: PreTrainedModel, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
            config = rest.pop("generation_config")
            kwargs = {key: rest[key] for key in rest if key not in NOT_FOR_THE_MODEL}
            call = Call(model, input_ids, config, kwargs)
            with self.planned(call) as plan:
                if plan.mode != PLAIN:
                    engine = self.engine(call, plan)
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
        """Do the one-off work of calls of up to `max_length` tokens ahead of them.

        Args:
            plug: decodes a few tokens, so that everything that decoding needs is compiled.
            settings: of `generate`.

        Returns:
            (forward passes that were captured or compiled, the seconds that it took)
        """
        torch.get_num_threads()  # in a new thread mkldnn takes its own number of them until asked
        ids = torch.ones((1, 4), dtype=torch.int64, device=support.device_of(model))
        captured = [(0, 0.0)]

        def act(engine: Engine) -> None:
            engine.warm(max_length)
            captured.append(engine.captured)

        with evidence.unchanged(model):
            _generate_little(model, ids, plug, settings)
            self.on_engine(model, ids, act, **settings)
        return captured[-1]

    def budget(self, plan: CallPlan, drafters: int, drafter_set: int) -> Budget:
        """How many tokens pay on the engine of a plan, for the calls with a drafter set.

        Each set has its own budget: the higher its number, the more calls run beside it, and the
        longer its forward passes take.

        Args:
            drafters: number of drafters.
            drafter_set: number of the set.
        """
        key = plan.engine, drafters, drafter_set
        with self.lock:
            budget = self._budgets.get(key)
            if budget is None:
                budget = Budget(self._nodes, drafters, plan.widths)
                if drafter_set < KEPT:
                    self._budgets[key] = budget
            return budget


def _generate_little(
    model: PreTrainedModel, input_ids: torch.Tensor, method: Any, settings: dict[str, Any]
) -> None:
    every = {"max_new_tokens": 2, **settings, "do_sample": False, "custom_generate": method}
    type(model).generate(model, input_ids, attention_mask=torch.ones_like(input_ids), **every)
