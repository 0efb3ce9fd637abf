"""The adapter to `generate`: the inputs of a decoding method and the outputs it returns."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.candidate_generator import CandidateGenerator as CandidateGenerator
from transformers.generation.streamers import BaseStreamer as BaseStreamer
from transformers.generation.utils import (
    GENERATION_MODES_MAPPING,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)

from hf_specplug.errors import OptionError
from hf_specplug.hf.call import Call


def plain(
    call: Call,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    streamer: BaseStreamer | None,
) -> Any:
    """Decode a call exactly as `generate` does without a plug.

    Raises:
        OptionError: the generation mode does not work with `custom_generate`.
    """
    mode = call.config.get_generation_mode()
    method = GENERATION_MODES_MAPPING[mode]
    if method not in ("_sample", "_beam_search"):
        raise OptionError(
            f"{mode.value} cannot be combined with custom_generate; leave custom_generate out"
        )
    arguments: dict[str, Any] = {
        "logits_processor": processors,
        "stopping_criteria": criteria,
        "generation_config": call.config,
    }
    if streamer is not None:
        arguments["streamer"] = streamer
    decode = getattr(type(call.model), method)
    return decode(call.model, call.input_ids, **arguments, **call.kwargs)


def vocab_size(model: PreTrainedModel) -> int:
    """The vocabulary size of the model's decoder in tokens, including padding entries."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def text_of(call: Call, inputs: torch.Tensor | None) -> NDArray[np.int64]:
    """The tokens to draft from, int64[n]: the encoder's if it reads text, then the prompt.

    Ids outside the vocabulary keep their positions. A -1 separates the two texts.

    Args:
        inputs: the model's own inputs, if they are not `input_ids`.
    """
    parts = [call.input_ids[0].cpu().numpy()]
    if call.model.config.is_encoder_decoder and inputs is not None and _is_text(inputs):
        parts = [inputs[0].cpu().numpy(), np.array([-1]), *parts]
    return np.concatenate(parts)


def _is_text(inputs: torch.Tensor) -> bool:
    return inputs.ndim == 2 and not inputs.is_floating_point()


def text_of_row(call: Call, row: int, inputs: torch.Tensor | None) -> NDArray[np.int64]:
    """`text_of` one row of a batch, without padding.

    Args:
        inputs: the model's own inputs, if they are not `input_ids`; one row per prompt.
    """
    ids, mask = call.input_ids[row], call.kwargs.get("attention_mask")
    if not call.model.config.is_encoder_decoder:
        first = 0 if mask is None else int((mask[row] != 0).to(torch.uint8).argmax())
        return ids[first:].cpu().numpy()  # type: ignore[no-any-return]
    own = replace(call, input_ids=ids[None])
    if inputs is None or not _is_text(inputs):
        return text_of(own, inputs)
    shown = inputs[row * len(inputs) // call.rows]
    return text_of(own, (shown if mask is None else shown[mask[row] != 0])[None])


def padded(call: Call, rows: list[torch.Tensor]) -> torch.Tensor:
    """int64[N, longest]: the finished rows int64[1, n], padded as `generate` pads them."""
    longest, value = max(row.shape[1] for row in rows), pad_token(call)
    pads = torch.nn.functional.pad
    return torch.cat([pads(row, (0, longest - row.shape[1]), value=value) for row in rows])


def pad_token(call: Call) -> int:
    """The token that `generate` appends to rows that have ended."""
    pad = call.config._pad_token_tensor
    return 0 if pad is None else int(pad)  # without a stop token all rows are equally long


def result(
    call: Call,
    sequences: torch.Tensor,
    scores: tuple[torch.Tensor, ...] | None,
    logits: tuple[torch.Tensor, ...] | None,
    cache: Any,
) -> Any:
    """Build the return value of `generate`.

    Args:
        sequences: int64[rows, n], the finished sequences.
        scores, logits: one entry per generated token; None if the call does not return them.
        cache: the KV cache after the last forward pass.
    """
    sequences = sequences.clone()
    if not call.config.return_dict_in_generate:
        return sequences
    kind = (
        GenerateEncoderDecoderOutput
        if call.model.config.is_encoder_decoder
        else GenerateDecoderOnlyOutput
    )
    return kind(sequences=sequences, scores=scores, logits=logits, past_key_values=cache)


def streamer_of_caller() -> BaseStreamer | None:
    """The streamer of the enclosing `generate(custom_generate=plug)` call; None if there is none.

    Since 4.57, `generate` does not pass the streamer to a callable. It has already sent the prompt
    to the streamer, so a reader of a TextIteratorStreamer would wait forever. Only the frame of
    `generate` holds the streamer. An attached plug receives it directly and does not call this
    function.
    """
    frame = sys._getframe(2)
    if frame.f_code.co_name == "generate" and "streamer" in frame.f_locals:
        return frame.f_locals["streamer"]  # type: ignore[no-any-return]
    return None
