"""Which calls with several rows can be drafted, and why others run plainly.

The rows of a drafted batch run ahead of one another. Logits processors that look at one row at a
time give the same results then. Those that look at all rows of a step, or count steps, do not.
Stopping criteria that do are called once all rows have come to the step (see `batch/steps.py`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    GenerationMixin,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.cache_utils import DynamicCache, StaticCache

from hf_specplug.hf.cache import FIXED, GROWING, decoder_cache
from hf_specplug.hf.call import OF_A_TEXT, Call
from hf_specplug.hf.encoder_rows import OF_AN_ENCODER
from hf_specplug.hf.positions import position_argument, slot_modules
from hf_specplug.hf.support import is_generic

ROW_BY_ROW = frozenset(
    {
        EpsilonLogitsWarper,
        EtaLogitsWarper,
        ExponentialDecayLengthPenalty,
        ForcedBOSTokenLogitsProcessor,
        ForcedEOSTokenLogitsProcessor,
        InfNanRemoveLogitsProcessor,
        LogitNormalization,
        MinLengthLogitsProcessor,
        MinNewTokensLengthLogitsProcessor,
        MinPLogitsWarper,
        NoBadWordsLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    }
)
"""Logits processors that treat each row alone, by its tokens only. A test compares them."""

BY_LOGITS = frozenset(
    {
        EpsilonLogitsWarper,
        EtaLogitsWarper,
        InfNanRemoveLogitsProcessor,
        LogitNormalization,
        MinPLogitsWarper,
        SuppressTokensLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    }
)
"""Of these, the ones that do not look at the text: rows of any length can be processed together.
The others process rows of the same length together."""

_ENDS_A_ROW = frozenset({EosTokenCriteria, MaxLengthCriteria, StopStringCriteria})
"""Stopping criteria that tell from the tokens of a row alone whether it ends."""

_BY_ROW = "prompt_ignore_length"
"""The attribute in which a processor may hold a tensor with one number per row."""


_MARKS_CACHES = (
    "_is_user_defined" in GenerationMixin._prepare_cache_for_generation.__code__.co_names
)
"""Whether `generate` marks caches of the caller; otherwise any cache may be the caller's."""


def unsuited(call: Call, chain: bool = False) -> str:
    """Why the rows of a call cannot have caches of their own; "" if they can.

    Args:
        chain: whether only chains are verified, which need no positions of their own.
    """
    model, cache = call.model, decoder_cache(call.cache)
    config = model.config.get_text_config(decoder=True)
    known, mask_key = OF_A_TEXT, "attention_mask"
    if model.config.is_encoder_decoder:
        known, mask_key = OF_A_TEXT.union(OF_AN_ENCODER), "decoder_attention_mask"
        known |= {mask_key}
    given = {key for key, value in call.kwargs.items() if value is not None} - known
    if given:
        return f"a batch with {', '.join(sorted(given))} is not drafted yet"
    knows = chain or position_argument(model) or slot_modules(model)
    if not is_generic(model) or not knows:
        return f"a batch of {config.model_type}, which prepares its own inputs, is not drafted yet"
    mask = call.kwargs.get(mask_key)
    if mask is not None and mask.shape != call.input_ids.shape:
        return "a batch with an attention mask of another shape than its tokens is not drafted yet"
    caches = {type(each) for each in (cache, getattr(call.cache, "cross_attention_cache", cache))}
    kinds = {type(layer) for layer in cache.layers}
    grows = caches == {DynamicCache} and kinds <= GROWING
    fixed = caches == {StaticCache} and kinds <= FIXED
    if not grows and (not fixed or chain or model.config.is_encoder_decoder):
        names = ", ".join(sorted({type(cache).__name__, *(kind.__name__ for kind in kinds)}))
        return f"a batch with a cache of {names} is not drafted yet"
    if chain and getattr(config, "attention_chunk_size", None):
        return "a batch of chains is not drafted where attention counts slots from the first one"
    if getattr(cache, "offloading", False):
        return "an offloaded cache is not rolled back"
    if getattr(config, "num_kv_shared_layers", 0):
        return "a batch of a model whose layers share keys is not drafted yet"
    return ""


def slots_known(model: PreTrainedModel) -> int:
    """The number of slots that a model is made for, by its config; 0 if that does not tell."""
    config = model.config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "max_seq_len")
    return max(int(getattr(config, name, None) or 0) for name in names)


def outlives(config: GenerationConfig, cache: Any) -> bool:
    """Whether the cache of a call is used after it, and must hold what plain `generate` leaves."""
    of_caller = getattr(cache, "_is_user_defined", not _MARKS_CACHES)
    return bool(config.return_dict_in_generate or of_caller)


def lockstep(
    rows: int,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
) -> str:
    """Why the rows of a call must advance together; "" if they need not.

    Args:
        rows: number of rows.
        processors, criteria, config: as `generate` prepared them.
    """
    for processor in processors:
        numbers = _numbers(processor)
        if numbers is not None and len(numbers) != rows:
            return f"{type(processor).__name__} holds {len(numbers)} numbers for {rows} rows"
        if type(processor) not in ROW_BY_ROW:
            return f"{type(processor).__name__} is called for all rows of a batch at once"
    if pads(criteria) and config.return_dict_in_generate and config.output_scores:
        for criterion in criteria:
            if type(criterion) not in _ENDS_A_ROW | {MaxTimeCriteria}:
                name = type(criterion).__name__
                return f"{name} gets the scores of padding, which is not computed step by step"
    return ""


def pads(criteria: StoppingCriteriaList) -> bool:
    """Whether `generate` pads rows that have ended; otherwise they go on until all have."""
    return any(hasattr(criterion, "eos_token_id") for criterion in criteria)


def criteria_of_row(criteria: StoppingCriteriaList) -> StoppingCriteriaList:
    """Those criteria of a batch that end each row alone, whatever the others say."""
    known = _ENDS_A_ROW if pads(criteria) else {MaxLengthCriteria}
    return StoppingCriteriaList([one for one in criteria if type(one) in known])


def hold_rows(processors: LogitsProcessorList) -> bool:
    """Whether a processor holds numbers for the rows of a batch."""
    return any(_numbers(processor) is not None for processor in processors)


def _numbers(processor: Any) -> torch.Tensor | None:
    """What a processor holds for the rows of a batch, one number per row."""
    numbers = getattr(processor, _BY_ROW, None)
    return numbers if isinstance(numbers, torch.Tensor) else None


def processors_of_row(processors: LogitsProcessorList, row: int) -> LogitsProcessorList:
    """The processors of one row of a batch: those of the batch, with what they hold for the row."""
    own = LogitsProcessorList()
    for processor in processors:
        numbers = _numbers(processor)
        if numbers is not None:
            processor = copy.copy(processor)
            setattr(processor, _BY_ROW, numbers[row : row + 1])
        own.append(processor)
    return own
