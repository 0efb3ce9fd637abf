"""The base class of engines: it runs the prompt and prepares the inputs of forward passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.errors import OptionError
from hf_specplug.hf.call import Call
from hf_specplug.hf.hidden_states import HiddenStateHook
from hf_specplug.hf.plan import TREE, CallPlan
from hf_specplug.hf.positions import position_argument
from hf_specplug.hf.prefill import Prompt, optimized_for_decode, prefilled
from hf_specplug.hf.support import device_of
from hf_specplug.tree import DraftTree
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.packed import PackedLinears


class Engine(ABC):
    """Runs the prompt, then one forward pass per tree.

    Args:
        call: the call as `generate` prepared it; its arguments are copied.
        plan: says whether trees or only chains are verified.
        packed: the model's packed weights; None to use the plain weights.
        layer: the layer whose hidden states drafters need; None if no drafter needs any.

    Attributes:
        cache: the KV cache that `generate` returns; set once the prompt has run.
        degraded_reason: why this call runs worse than planned; "" if it does not.
    """

    def __init__(
        self,
        call: Call,
        plan: CallPlan,
        packed: PackedLinears | None = None,
        layer: int | None = None,
    ) -> None:
        self._model = model = call.model
        self._packed = packed
        self._device = device_of(model)  # visits all parameters, which is too slow for every step
        self._per_token: dict[str, int] = {}
        self._config = call.config
        self._kwargs = dict(call.kwargs)
        self._tree = plan.mode == TREE
        self._encoder_decoder = bool(model.config.is_encoder_decoder)
        prefix = "decoder_" if self._encoder_decoder else ""
        self._ids_key = f"{prefix}input_ids"
        self._mask_key = f"{prefix}attention_mask"
        self._position_key = position_argument(model)
        self._past = 0
        self._undo = ExitStack()
        self.degraded_reason = ""
        self._hook: HiddenStateHook | None = None
        if layer is not None:
            try:
                self._hook = HiddenStateHook(model, layer)
            except OptionError as error:  # drafters get no hidden states
                self.degraded_reason = str(error)

    @property
    def overlaps(self) -> bool:
        """Whether `step` returns while the device still computes its outputs."""
        return bool(self._device.type != "cpu")

    @property
    def captured(self) -> tuple[int, float]:
        """(forward passes captured or compiled in this call, seconds that took)"""
        return 0, 0.0

    @property
    @abstractmethod
    def free_slots(self) -> int:
        """Number of drafted tokens for which the next forward pass has cache slots."""

    @property
    def replays(self) -> int | None:
        """Number of accepted tokens that the next forward pass runs again before its root.

        None if the engine drops rejected tokens, so that it need not run accepted ones again.
        """
        return None

    def step(self, root: int, tree: DraftTree) -> Outputs:
        """Run one forward pass over a tree; returns the outputs at the root and the nodes."""
        if self._packed is not None:
            self._packed.step()
        tokens = np.empty(len(tree) + 1, np.int64)
        tokens[0] = root
        tokens[1:] = tree.tokens
        seen, depths = tree.ancestors()
        with self._packed or nullcontext():
            outputs = self._verify(tokens, depths, seen)
        return self._with_states(outputs)

    @abstractmethod
    def _verify(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> Outputs:
        """Run one forward pass over T tokens.

        Args:
            tokens: int64[T], the root first.
            depths: int64[T], 0 at the root.
            seen: bool[T, T], True where the column is the row's token or one of its ancestors.
        """

    @abstractmethod
    def keep(self, visited: Sequence[int]) -> None:
        """Keep these cache slots of the last step (ascending, root first), and drop the others."""

    @abstractmethod
    def warm(self, max_length: int) -> None:
        """Prepare forward passes for texts of up to `max_length` tokens; called after `prefill`."""

    def _warm_weights(self) -> None:
        if self._packed is not None:
            self._packed.warm()

    @abstractmethod
    def _start(self) -> None:
        """Prepare for trees; the prompt is in `cache`."""

    def prefill(self, input_ids: torch.Tensor) -> Outputs:
        """Run the prompt; returns the outputs at its last token."""
        return self._with_states(Outputs(self._run_prompt(input_ids)[0], states=self._states(1)))

    def _run_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the prompt of all rows; returns the logits [rows, 1, V] of its last token."""
        with self._watched():
            outputs, prompt = prefilled(self._model, input_ids, self._config, self._kwargs)
        self._undo.enter_context(optimized_for_decode(self._model))
        if self._packed is not None:
            self._undo.callback(self._packed.close)
            self._packed.open(self._model)
        self.resume(prompt)
        logits: torch.Tensor = outputs.logits[:, -1:]
        return logits

    def _with_states(self, outputs: Outputs) -> Outputs:
        """The outputs; takes note if hidden states are needed and the hook saw none."""
        if self._hook is not None and not outputs.has_states and not self.degraded_reason:
            self.degraded_reason = (
                "the model's hidden states are not seen: nothing is drafted by them"
            )
        return outputs

    def resume(self, prompt: Prompt) -> None:
        """Continue from a prompt that has run: trees come next."""
        self._kwargs = prompt.kwargs
        if "logits_to_keep" in self._kwargs:
            self._kwargs["logits_to_keep"] = 0  # keep the logits of all tokens of a tree
        self._per_token = prompt.per_token
        self.cache = self._kwargs["past_key_values"]
        self._past = int(self.cache.get_seq_length())
        self._prepare_positions(prompt.input_ids)
        self._prompt_mask = self._kwargs.pop(self._mask_key, None)
        self._start()

    def _watched(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._hook is None else self._hook

    def _states(self, count: int, row: int = 0) -> torch.Tensor | None:
        """[count, width], the hidden states of a forward pass; None if the hook saw none."""
        return None if self._hook is None else self._hook.of(row, count)

    def _prepare_positions(self, input_ids: torch.Tensor) -> None:
        """Get the position of the next token from the model's own input preparation.

        Positions increase by one per token from there. The prepared position may differ from the
        given one: PaliGemma counts from 1.
        """
        self._first_past = self._past
        self._given = self._starts = self._shape = None
        self._counts = True
        key = self._position_key
        if key is None:
            return
        ids = torch.cat([input_ids, input_ids.new_zeros((len(input_ids), 1))], dim=1)
        prepared = self._model.prepare_inputs_for_generation(
            ids, next_sequence_length=1, is_first_iteration=False, **self._kwargs
        )
        given, starts = self._kwargs.pop(key, None), prepared.get(key)
        if given is not None:
            self._given = given[..., -1:]
        self._counts = starts is None  # without positions the model counts cache slots by itself
        if starts is None:
            starts = torch.full((1, 1), self._past, device=self._device)
        self._starts = starts[..., -1:].to(self._device)
        values = self._starts.flatten().tolist()
        if len(set(values)) == 1:  # the rows of mrope differ after an image
            self._first, self._shape = values[0], self._starts.shape[:-1]

    def _prepare(
        self, ids: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """The arguments that the model's own `prepare_inputs_for_generation` makes for T tokens.

        Args:
            ids: int64[rows, T].
            offsets: int64[T], their positions relative to the first token after the prompt.
            mask: [1, past + T]; None unless tokens of the prompt are hidden.
        """
        kwargs = dict(self._kwargs)
        if self._given is not None and self._position_key is not None:
            kwargs[self._position_key] = self._given + offsets.to(self._given.device)
        for key, dim in self._per_token.items():
            last = kwargs[key].narrow(dim, -1, 1)
            kwargs[key] = last.expand(*last.shape[:dim], ids.shape[1], *last.shape[dim + 1 :])
        if mask is not None:
            kwargs[self._mask_key] = mask
        inputs: dict[str, Any] = self._model.prepare_inputs_for_generation(
            ids, is_first_iteration=False, **kwargs
        )
        if mask is None:
            inputs.pop(self._mask_key, None)
        if "logits_to_keep" in inputs:  # some models set it themselves
            inputs["logits_to_keep"] = 0
        return inputs

    def close(self) -> None:
        """Leave the cache and the model in the state in which plain `generate` leaves them."""
        self._undo.close()
