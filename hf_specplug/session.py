"""What a plug knows and keeps of one model, in this process: how to run it, and at what cost."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from hf_specplug.budget import Budget
from hf_specplug.verify import support
from hf_specplug.verify.cache import PLAIN, TREE
from hf_specplug.verify.eager import EagerEngine
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.forward import StaticForward
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.static import WIDTHS, StaticEngine
from hf_specplug.verify.support import Support


class Session:
    """Chooses and makes the engine of each call. It holds no reference to the model.

    Args:
        nodes, drafters: for the budget; the latter is their number.
        pack: whether weights may be kept in another layout too.
    """

    def __init__(self, nodes: int | str, drafters: int, pack: bool) -> None:
        self._nodes, self._drafters = nodes, drafters
        self._support: dict[str, Support] = {}
        self._budgets: dict[bool, Budget] = {}
        self._packed = PackedLinears() if pack else None
        self._forward = StaticForward()

    def choose(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> tuple[Support, bool]:
        """Tree, chain or plain for a call, and whether the static engine is to run it."""
        attention = str(model.config.get_text_config(decoder=True)._attn_implementation)
        if attention not in self._support:
            self._support[attention] = support.of_model(model)
        choice = self._support[attention]
        static = choice.mode == TREE and support.is_static(model, config, model_kwargs)
        static = static and not self._forward.failure
        if choice.mode != PLAIN:
            of_call = support.of_call(model, input_ids, config, model_kwargs, static)
            if of_call.mode == PLAIN or choice.mode == TREE:
                choice = of_call
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
        if static:
            return StaticEngine(model, config, model_kwargs, mode, self._forward)
        packed = self._packed if model.device.type == "cpu" else None
        return EagerEngine(model, config, model_kwargs, mode, packed)

    def budget(self, static: bool) -> Budget:
        """How many tokens pay, on either engine."""
        if static not in self._budgets:
            padded = WIDTHS if static else None
            self._budgets[static] = Budget(self._nodes, self._drafters, padded)
        return self._budgets[static]
