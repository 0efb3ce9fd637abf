"""One `generate` call as a decoding method receives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

NOT_FOR_THE_MODEL = ("logits_processor", "stopping_criteria", "inputs_tensor", "streamer")
"""Arguments of a decoding method that the model's forward pass does not take."""

OF_A_TEXT = frozenset(
    {"attention_mask", "logits_to_keep", "past_key_values", "position_ids", "use_cache"}
)
"""The arguments that `generate` itself derives from a text for a decoder-only model."""


@dataclass(frozen=True, slots=True)
class Call:
    """The inputs of one call, as `generate` prepared them.

    Attributes:
        model: the model.
        input_ids: int64[rows, n], the prompt; for an encoder-decoder model, the decoder's.
        config: the generation config of this call.
        kwargs: arguments of the model's forward pass, including the KV cache.
    """

    model: PreTrainedModel
    input_ids: torch.Tensor
    config: GenerationConfig
    kwargs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Number of sequences, one per prompt and return sequence."""
        return self.input_ids.shape[0]

    @property
    def cache(self) -> Any:
        """The KV cache that `generate` prepared; None if there is none."""
        return self.kwargs.get("past_key_values")
