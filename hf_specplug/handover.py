"""What transformers' `generate` hands over to a decoding method, and expects back."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import (
    GENERATION_MODES_MAPPING,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)

from hf_specplug.drafters.contract import Context
from hf_specplug.errors import OptionError
from hf_specplug.hf import suppressed
from hf_specplug.verify.acceptance import Verifier


def plain(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    arguments: dict[str, Any],
    streamer: BaseStreamer | None,
    model_kwargs: dict[str, Any],
) -> Any:
    """What `generate` would have run without us."""
    mode = arguments["generation_config"].get_generation_mode()
    method = GENERATION_MODES_MAPPING[mode]
    if method not in ("_sample", "_beam_search"):
        raise OptionError(
            f"{mode.value} cannot be combined with custom_generate; leave custom_generate out"
        )
    if streamer is not None:
        arguments["streamer"] = streamer
    return getattr(type(model), method)(model, input_ids, **arguments, **model_kwargs)


def context(
    model: PreTrainedModel, input_ids: torch.Tensor, inputs: torch.Tensor | None, signature: str
) -> Context:
    """The text to draft from: the encoder's, if it reads text, then the prompt; -1 = no token.

    Args:
        inputs: the model's own, if not `input_ids`.
        signature: tells the model from others, if its hidden states are looked at.
    """
    vocab = int(model.config.get_text_config(decoder=True).vocab_size)
    never = suppressed.tokens(model)
    parts = [input_ids[0].cpu().numpy()]
    reads_text = inputs is not None and inputs.ndim == 2 and not inputs.is_floating_point()
    if model.config.is_encoder_decoder and inputs is not None and reads_text:
        parts = [inputs[0].cpu().numpy(), np.array([-1]), *parts]
    tokens = np.concatenate(parts)
    tokens[(tokens < 0) | (tokens >= vocab) | np.isin(tokens, list(never))] = -1
    return Context(tokens.astype(np.int32), vocab, signature, never)


def result(model: PreTrainedModel, verifier: Verifier, config: GenerationConfig, cache: Any) -> Any:
    """What `generate` returns for a finished verifier."""
    sequences = verifier.input_ids.clone()
    if not config.return_dict_in_generate:
        return sequences
    kind = (
        GenerateEncoderDecoderOutput
        if model.config.is_encoder_decoder
        else GenerateDecoderOnlyOutput
    )
    return kind(
        sequences=sequences, scores=verifier.scores, logits=verifier.logits, past_key_values=cache
    )


def streamer_of_caller() -> BaseStreamer | None:
    """The streamer given to the `generate` call that we run in.

    `generate` (since 4.57) hands a callable no streamer, yet has sent it the prompt: a reader of a
    TextIteratorStreamer would wait forever. So it is read from the caller's frame.
    """
    frame = sys._getframe(2)
    if frame.f_code.co_name == "generate" and "streamer" in frame.f_locals:
        return frame.f_locals["streamer"]  # type: ignore[no-any-return]
    return None
