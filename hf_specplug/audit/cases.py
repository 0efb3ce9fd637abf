"""The settings of `generate` that an audit compares: greedy, sampled, processors and caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Case:
    """Settings of `generate` that are compared.

    Attributes:
        name: as tables show it.
        settings: arguments of `generate`.
    """

    name: str
    settings: dict[str, Any]

    @property
    def sampled(self) -> bool:
        """Whether the tokens depend on the seed."""
        return bool(self.settings["do_sample"])


def cases(model: PreTrainedModel, tokenizer: Any, answer: Sequence[int]) -> list[Case]:
    """The cases of an audit.

    Args:
        model: the model.
        tokenizer: the model's.
        answer: token ids of a plain greedy answer. Processors that act on certain tokens are given
            some of these, so that they change the text.
    """
    greedy = {"greedy": {}, **_processors(answer), **_ends(tokenizer, answer)}
    sampled = dict(_SAMPLING)
    for name, settings in _caches(model).items():
        greedy[name] = settings
        sampled[f"{name}, sampled"] = settings
    both = ((greedy, False), (sampled, True))
    return [
        Case(name, {**settings, "do_sample": sample})
        for named, sample in both
        for name, settings in named.items()
    ]


_SAMPLING: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.0, "top_k": 0},
    "temperature 0.7": {"temperature": 0.7, "top_k": 0},
    "temperature 1.5": {"temperature": 1.5, "top_k": 0},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.9, "top_k": 0},
    "min_p": {"min_p": 0.05, "top_k": 0},
    "typical_p": {"typical_p": 0.9, "top_k": 0},
    "top_h": {"top_h": 0.5, "top_k": 0},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-3, "top_k": 0},
    "eta_cutoff": {"eta_cutoff": 3e-3, "top_k": 0},
    "watermarking_config": {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 2.0}},
    "renormalize_logits": {"renormalize_logits": True, "top_k": 20},
    "sampled, several": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1},
}


def _processors(answer: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Settings that change scores, by name."""
    common = Counter(answer).most_common(1)[0][0]
    return {
        "repetition_penalty": {"repetition_penalty": 1.2},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.2},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 4},
        "bad_words_ids": {"bad_words_ids": [[common], list(answer[1:3])]},
        "sequence_bias": {"sequence_bias": [[[common], -4.0]]},
        "suppress_tokens": {"suppress_tokens": [common]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [answer[0]]},
        "forced_eos_token_id": {"forced_eos_token_id": common},
        "remove_invalid_values": {"remove_invalid_values": True},
        "guidance_scale": {"guidance_scale": 1.5},
    }


def _ends(tokenizer: Any, answer: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Settings that decide where the text ends, by name."""
    middle = len(answer) // 2
    end = {"eos_token_id": answer[middle], "pad_token_id": answer[middle]}
    words = tokenizer.decode(list(answer[middle : middle + 2])).strip() or "."
    return {
        "eos_token_id": end,
        "min_new_tokens": {**end, "min_new_tokens": middle + 2},
        "exponential_decay_length_penalty": {
            **end,
            "exponential_decay_length_penalty": (middle // 2, 1.2),
        },
        "stop_strings": {"stop_strings": [words], "tokenizer": tokenizer},
    }


def _caches(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Settings that choose the cache and with it the engine, by name."""
    found: dict[str, dict[str, Any]] = {"static cache": {"cache_implementation": "static"}}
    if model.device.type == "cuda":
        found["without CUDA graphs"] = {"disable_compile": True}
    return found
