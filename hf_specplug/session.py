"""What a plug knows and keeps of one model, in this process: how to run it, and at what cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from hf_specplug.budget import Budget
from hf_specplug.errors import OptionError
from hf_specplug.verify import evidence, support
from hf_specplug.verify.cache import PLAIN, TREE
from hf_specplug.verify.eager import EagerEngine
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.forward import StaticForward
from hf_specplug.verify.hidden import Watch, signature
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.static import WIDTHS, StaticEngine, compile_config
from hf_specplug.verify.support import Support

_NOT_FOR_THE_MODEL = ("logits_processor", "stopping_criteria", "inputs_tensor", "streamer")


class Session:
    """Chooses and makes the engine of each call. It holds no reference to the model.

    Args:
        nodes, drafters: for the budget; the latter is their number.
        pack: whether weights may be kept in another layout too.

    Attributes:
        layer: whose hidden states drafters want; None if none does.
    """

    def __init__(self, nodes: int | str, drafters: int, pack: bool) -> None:
        self._nodes, self._drafters = nodes, drafters
        self._signature = ""
        self.layer: int | None = None
        self._budgets: dict[bool, Budget] = {}
        self._packed = PackedLinears() if pack else None
        self._forward = StaticForward()

    def choose(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> tuple[Support, bool]:
        """Tree, chain or plain for a call, and whether the static engine is to run it."""
        choice = support.of_model(model)
        static = choice.mode == TREE and support.is_static(model, generation_config, model_kwargs)
        static = static and not self._forward.failure
        if choice.mode != PLAIN:
            of_call = support.of_call(model, input_ids, generation_config, model_kwargs, static)
            if of_call.mode == PLAIN or choice.mode == TREE:
                choice = of_call
        if choice.mode != PLAIN:
            choice = evidence.shown(model, choice, input_ids, generation_config, model_kwargs)
        return choice, static and choice.mode == TREE

    def engine(
        self,
        model: PreTrainedModel,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
        mode: Support,
        static: bool,
    ) -> Engine:
        """What runs a call of the given kind."""
        packed = self._packed if model.device.type == "cpu" else None
        engine: Engine
        if static:
            if compile_config(model, config) is not None:
                packed = None
            engine = StaticEngine(model, config, model_kwargs, mode, self._forward, packed)
        else:
            engine = EagerEngine(model, config, model_kwargs, mode, packed)
        if self.layer is not None:
            try:
                engine.watch = Watch(model, self.layer)
            except OptionError as error:  # nothing is drafted by states, then
                engine.trouble = str(error)
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
            choice, static = self.choose(model, input_ids, config, **kwargs)
            if choice.mode != PLAIN:
                engine = self.engine(model, config, kwargs, choice, static)
                try:
                    engine.prefill(input_ids, 1)
                    act(engine)
                finally:
                    engine.close()
            return input_ids

        every = {"max_new_tokens": 2, **settings, "do_sample": False, "custom_generate": run}
        type(model).generate(model, input_ids, attention_mask=torch.ones_like(input_ids), **every)

    def budget(self, static: bool) -> Budget:
        """How many tokens pay, on either engine."""
        if static not in self._budgets:
            padded = WIDTHS if static else None
            self._budgets[static] = Budget(self._nodes, self._drafters, padded)
        return self._budgets[static]
