"""Forward passes of the target: what all engines share, the prompt and how inputs are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel

from hf_specplug.tree import DraftTree
from hf_specplug.verify.cache import TREE
from hf_specplug.verify.hidden import Watch
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.support import PER_TOKEN, Support, position_argument

PREFILL_LOGITS = 1 << 25
"""Logits of the prompt that are computed for drafters at most (128 MB in float32)."""


class Engine(ABC):
    """Runs the prompt, then one tree at a time.

    Args:
        model_kwargs: what `generate` prepared for the model; taken over and changed.
        support: whether trees or only chains may be checked.
        packed: the model's weights in a faster layout, if it is to be used.

    Attributes:
        cache: the key-value cache that `generate` returns, once the prompt has run.
        overlaps: whether a step is still being computed when it returns.
        drafts: False if the prompt showed that the cache cannot be rolled back after all.
        trouble: what went worse than planned, "" if nothing did.
        watch: sees hidden states in each forward pass, if set before the prompt runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
        support: Support,
        packed: PackedLinears | None = None,
    ) -> None:
        self._model = model
        self._packed = packed
        self._device = model.device  # the property walks all parameters: too slow for every step
        self._config = config
        self._kwargs = model_kwargs
        self._tree = support.mode == TREE
        self._encoder_decoder = bool(model.config.is_encoder_decoder)
        prefix = "decoder_" if self._encoder_decoder else ""
        self._ids_key = f"{prefix}input_ids"
        self._mask_key = f"{prefix}attention_mask"
        self._position_key = position_argument(model)
        self._past = 0
        self._undo = ExitStack()
        self.overlaps = self._device.type != "cpu"
        self.drafts = True
        self.trouble = ""
        self.watch: Watch | None = None

    @property
    def prepared(self) -> tuple[int, float]:
        """Forward passes captured or compiled in this call, and the seconds it took."""
        return 0, 0.0

    @property
    @abstractmethod
    def room(self) -> int:
        """Drafted tokens that the next forward pass has slots for."""

    def step(self, root: int, tree: DraftTree) -> Outputs:
        """Check a tree; return what was found at the root and the tree's nodes."""
        if self._packed is not None:
            self._packed.step()
        tokens = np.empty(len(tree) + 1, np.int64)
        tokens[0] = root
        tokens[1:] = tree.tokens
        seen = tree.ancestors()
        with self._packed or nullcontext():
            return self._check(tokens, seen.sum(axis=1, dtype=np.int64) - 1, seen)

    @abstractmethod
    def _check(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> Outputs:
        """One forward pass.

        Args:
            tokens: int64[T], the root first.
            depths: int64[T], 0 at the root.
            seen: bool[T, T], ancestors including self.
        """

    @abstractmethod
    def keep(self, visited: Sequence[int]) -> None:
        """Of the last step keep these slots (ascending, the root first)."""

    @abstractmethod
    def warm(self, max_length: int) -> None:
        """After the prompt: do now what texts of up to `max_length` tokens would wait for once."""

    def _warm_weights(self) -> None:
        if self._packed is not None:
            self._packed.warm()

    @abstractmethod
    def _start(self) -> None:
        """The prompt is in `cache`; trees come next."""

    def prefill(self, input_ids: torch.Tensor, wanted: int) -> Outputs:
        """Run the prompt; return what its last n tokens showed, n = `wanted` if possible."""
        model, kwargs = self._model, self._kwargs
        if kwargs.get("logits_to_keep") == 1 and wanted > 1:
            kwargs["logits_to_keep"] = wanted
        with self._watched():
            outputs = model._prefill(
                input_ids, self._config, kwargs, is_first_iteration=not self._config.is_assistant
            )
        kwargs = model._update_model_kwargs_for_generation(
            outputs, kwargs, is_encoder_decoder=self._encoder_decoder
        )
        if "logits_to_keep" in kwargs:
            kwargs["logits_to_keep"] = 0  # all of a tree
        self._kwargs = kwargs
        self.cache = kwargs["past_key_values"]
        self._past = int(self.cache.get_seq_length())
        self._prepare_positions()
        self._prompt_mask = kwargs.pop(self._mask_key, None)
        self._undo.enter_context(model._optimize_model_for_decode())  # as plain decoding does
        if self._packed is not None:
            self._undo.callback(self._packed.close)
            self._packed.open(model)
        self._start()
        return Outputs(outputs.logits[0, -wanted:], states=self._states(wanted))

    def _watched(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.watch is None else self.watch

    def _states(self, count: int) -> torch.Tensor | None:
        """[n, width] of the last `count` tokens of a forward pass, as far as they were seen."""
        return None if self.watch is None else self.watch.of(0, count)

    def _prepare_positions(self) -> None:
        """Positions go up by one a token from where the prompt ended."""
        self._first_past = self._past
        self._starts = self._shape = None
        if self._position_key is None:
            return
        given = self._kwargs.pop(self._position_key, None)
        if given is None:  # such models count from the cache
            given = torch.full((1, 1), self._past, device=self._device)
        self._starts = given[..., -1:]
        values = self._starts.flatten().tolist()
        if len(set(values)) == 1:  # the rows of mrope differ after an image
            self._first, self._shape = values[0], self._starts.shape[:-1]

    def _prepare(self, ids: torch.Tensor, positions: torch.Tensor | None) -> dict[str, Any]:
        """What the model's own preparation makes of these tokens, but for the mask."""
        kwargs = dict(self._kwargs)
        if positions is not None and self._position_key is not None:
            kwargs[self._position_key] = positions
        for key in PER_TOKEN:
            if kwargs.get(key) is not None:
                last = kwargs[key][..., -1:]
                last = torch.zeros_like(last) if key == "mm_token_type_ids" else last
                kwargs[key] = last.expand(*last.shape[:-1], ids.shape[1])
        inputs = self._model.prepare_inputs_for_generation(ids, is_first_iteration=False, **kwargs)
        inputs.pop(self._mask_key, None)
        return inputs  # type: ignore[no-any-return]

    def close(self) -> None:
        """Leave the cache and the model as plain `generate` leaves them."""
        self._undo.close()
