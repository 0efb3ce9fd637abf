"""Forward passes of the target: the prompt, then one tree at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from hf_specplug.drafters.base import TOP_K, TopK
from hf_specplug.kernels.topk import top_k as top_k_kernel
from hf_specplug.tree import DraftTree
from hf_specplug.verify.cache import TREE, Rollback, capacity
from hf_specplug.verify.masks import TreeMasks
from hf_specplug.verify.packed import PackedLinears
from hf_specplug.verify.support import Support, position_argument

_PER_TOKEN = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")

PREFILL_LOGITS = 1 << 25
"""Logits of the prompt that are computed for drafters at most (128 MB in float32)."""


class EagerEngine:
    """Runs the target launch by launch, on any cache that can be rolled back.

    Args:
        model_kwargs: what `generate` prepared for the model; taken over and changed.
        support: whether trees or only chains may be checked.
        packed: the model's weights in a faster layout, if it is to be used.

    Attributes:
        cache: the key-value cache, once the prompt has run.
        drafts: False if the prompt showed that the cache cannot be rolled back after all.
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
        self._template: dict[str, Any] | None = None
        self._past = 0
        self._width = 0
        self._undo = ExitStack()
        self._grouped_heads = _GroupedHeads(self._device)

    def prefill(self, input_ids: torch.Tensor, wanted: int) -> torch.Tensor:
        """Run the prompt; return logits [n, V] of its last n tokens, n = `wanted` if possible."""
        model, kwargs = self._model, self._kwargs
        if kwargs.get("logits_to_keep") == 1 and wanted > 1:
            kwargs["logits_to_keep"] = wanted
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
        self._capacity = capacity(self.cache)
        self._rollback = Rollback(self.cache)
        self._undo.callback(self._rollback.close)
        self.drafts = self._rollback.can_roll_back()
        if not self.drafts:
            self._rollback.close()
        self._prepare_positions()
        self._prompt_mask = kwargs.pop(self._mask_key, None)
        if self._tree:
            self._prepare_masks()
        self._undo.enter_context(model._optimize_model_for_decode())  # as plain decoding does
        if self._packed is not None:
            self._undo.callback(self._packed.close)
            self._packed.open(model)
        return outputs.logits[0, -wanted:]  # type: ignore[no-any-return]

    @property
    def room(self) -> int:
        """Drafted tokens that the next forward pass has slots for."""
        return self._capacity - self._past - 1

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

    def _prepare_masks(self) -> None:
        text = self._model.config.get_text_config(decoder=True)
        prompt_mask = self._prompt_mask
        self._masks = TreeMasks(
            self._model.config,
            self.cache,
            self._model.dtype,
            text._attn_implementation == "eager",
            self._device,
            None if prompt_mask is None else prompt_mask[:, : self._past],
        )

    def step(self, root: int, tree: DraftTree) -> torch.Tensor:
        """Check a tree; return logits [T, V] of the root and the tree's T - 1 nodes."""
        width = len(tree) + 1
        tokens = np.empty(width, np.int64)
        tokens[0] = root
        tokens[1:] = tree.tokens
        seen = tree.ancestors()
        depths = seen.sum(axis=1, dtype=np.int64) - 1
        mask: Any = None
        if width > 1 and self._tree:
            mask = self._masks.build(seen, depths, self._past)
        elif self._prompt_mask is not None:
            ones = self._prompt_mask.new_ones((1, self._past + width - self._prompt_mask.shape[1]))
            mask = torch.cat([self._prompt_mask, ones], dim=1)
        inputs = self._inputs(tokens, depths, mask)
        if self._packed is not None:
            self._packed.step()
        with self._grouped_heads:
            outputs = self._model(**inputs, return_dict=True)
        self._past += width
        self._width = width
        return outputs.logits[0]  # type: ignore[no-any-return]

    def _inputs(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], mask: Any
    ) -> dict[str, Any]:
        model = self._model
        ids = torch.from_numpy(tokens)[None].to(self._device)
        positions = None
        if self._shape is not None:
            offsets = torch.from_numpy(depths + (self._first + self._past - self._first_past))
            positions = offsets.to(self._device).expand(*self._shape, -1)
        elif self._starts is not None:
            offsets = torch.from_numpy(depths + (self._past - self._first_past))
            positions = self._starts + offsets.to(self._starts.device)
        if self._template is None:
            inputs = self._prepare(ids, positions)
            if _is_generic(model) and not any(key in inputs for key in _PER_TOKEN):
                self._template = dict(inputs)
        else:
            inputs = dict(self._template)
            inputs[self._ids_key] = ids
        if positions is not None and self._position_key is not None:
            inputs[self._position_key] = positions
        if mask is not None:
            inputs[self._mask_key] = mask
        return inputs

    def _prepare(self, ids: torch.Tensor, positions: torch.Tensor | None) -> dict[str, Any]:
        """What the model's own preparation makes of these tokens, but for the mask."""
        kwargs = dict(self._kwargs)
        if positions is not None and self._position_key is not None:
            kwargs[self._position_key] = positions
        for key in _PER_TOKEN:
            if kwargs.get(key) is not None:
                last = kwargs[key][..., -1:]
                last = torch.zeros_like(last) if key == "mm_token_type_ids" else last
                kwargs[key] = last.expand(*last.shape[:-1], ids.shape[1])
        inputs = self._model.prepare_inputs_for_generation(ids, is_first_iteration=False, **kwargs)
        inputs.pop(self._mask_key, None)
        return inputs  # type: ignore[no-any-return]

    def keep(self, visited: Sequence[int]) -> None:
        """Of the last step keep these slots (ascending, the root first)."""
        if self.drafts:
            self._rollback.keep(self._width, visited)
        self._past += len(visited) - self._width

    def close(self) -> None:
        """Leave the cache and the model as plain `generate` leaves them."""
        self._undo.close()


class _GroupedHeads:
    """On a CPU, lets masked attention use grouped key heads as they are.

    transformers copies them once per query head whenever there is a mask, unless this switch of its
    own is on: 5 % of a step at 300 tokens of context, 10 % at 1200. It is left as it was found.
    """

    _SWITCH = "TRANSFORMERS_SDPA_FORCE_GQA"

    def __init__(self, device: torch.device) -> None:
        self._wanted = device.type == "cpu"

    def __enter__(self) -> None:
        self._found = os.environ.get(self._SWITCH)
        if self._wanted and self._found is None:
            os.environ[self._SWITCH] = "1"

    def __exit__(self, *error: object) -> None:
        if self._wanted and self._found is None:
            os.environ.pop(self._SWITCH, None)


def _is_generic(model: PreTrainedModel) -> bool:
    own = type(model).prepare_inputs_for_generation
    return own is GenerationMixin.prepare_inputs_for_generation


def top_k(logits: torch.Tensor) -> TopK:
    """The target's `TOP_K` most likely next tokens after each row of `logits` [n, V]."""
    chances = torch.softmax(logits, dim=-1, dtype=torch.float32)
    if chances.device.type == "cpu":
        ids, probs = top_k_kernel(chances.numpy(), TOP_K)
    else:
        count = min(TOP_K, chances.shape[-1])
        best = torch.topk(chances, count, dim=-1)
        both = torch.cat([best.indices.float(), best.values], dim=-1).cpu().numpy()  # one copy
        ids = np.full((len(both), TOP_K), -1, np.int32)
        ids[:, :count] = both[:, :count]
        probs = np.zeros((len(both), TOP_K), np.float32)
        probs[:, :count] = both[:, count:]
    return TopK(ids, probs.clip(0.0, 1.0))
