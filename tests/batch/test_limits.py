"""Which batches run plainly, and why; logits processors that treat each row alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import LogitsProcessor, LogitsProcessorList

from hf_specplug import SpecPlug
from hf_specplug.hf import batches
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.rows import ENDS, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import VOCAB, make, prompt

DRAFTERS = list(DEFAULT_DRAFTERS)


class Own(LogitsProcessor):  # type: ignore[misc]
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + scores.mean(0)  # looks at all rows


def allowed(batch: int, ids: torch.Tensor) -> list[int]:
    return [3 + batch, 10, 11, int(ids[-1]) % 90]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"prefix_allowed_tokens_fn": allowed}, "PrefixConstrainedLogitsProcessor"),
        ({"logits_processor": LogitsProcessorList([Own()])}, "Own is called for all rows"),
        ({"guidance_scale": 1.5}, "ClassifierFreeGuidance"),
        ({"num_beams": 2}, "beam_search"),
        ({"use_cache": False}, "cache"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calls_that_run_plainly(settings: dict[str, Any], reason: str) -> None:
    model, inputs = copy.deepcopy(make("llama")), batch([7, 24])  # transformers leaves hooks in it
    every = {"max_new_tokens": 12, "do_sample": False, **ENDS, **settings}
    expected, state = plain(model, inputs, **every)
    output, after, plug = plugged(model, inputs, DRAFTERS, **every)
    if settings.get("return_dict_in_generate"):
        assert len(output.attentions or ()) == len(expected.attentions or ())
        assert len(output.hidden_states or ()) == len(expected.hidden_states or ())
        output, expected = output.sequences, expected.sequences
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert plug.stats.forwards == 0
    assert reason in next(iter(plug.stats.fallbacks))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lfm2", "a cache of DynamicCache, DynamicLayer, LinearAttentionLayer"),
        ("mamba2", "recurrent"),
        ("llama-dynamic-rope", "dynamic RoPE"),
        ("qwen2-vl", "is not drafted yet"),
    ],
)
def test_families_that_run_plainly(name: str, reason: str) -> None:
    model = make(name)
    inputs = {key: value.repeat_interleave(2, 0) for key, value in prompt(model).items()}
    expected, _ = plain(model, inputs, max_new_tokens=20, do_sample=False)
    output, _, plug = plugged(model, inputs, DRAFTERS, max_new_tokens=20, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards == 0
    assert reason in next(iter(plug.stats.fallbacks))


def test_rejection_runs_plainly_if_sampled() -> None:
    model, inputs = make("llama"), batch([7, 24])
    plug = SpecPlug(verification="rejection")
    torch.manual_seed(0)
    output = model.generate(**inputs, custom_generate=plug, max_new_tokens=9, do_sample=True)
    assert "rejection" in next(iter(plug.stats.fallbacks))
    expected, _ = plain(model, inputs, max_new_tokens=9, do_sample=True)
    assert output.tolist() == expected.tolist()
    plug.stats.reset()
    model.generate(**inputs, custom_generate=plug, max_new_tokens=9, do_sample=False)
    assert plug.stats.forwards > 0


BIAS = [[[10], 2.0], [[12, 13], -3.0]]
MADE: dict[str, Any] = {
    "EpsilonLogitsWarper": lambda: tf.EpsilonLogitsWarper(0.005),
    "EtaLogitsWarper": lambda: tf.EtaLogitsWarper(0.01),
    "ExponentialDecayLengthPenalty": lambda: tf.ExponentialDecayLengthPenalty((3, 1.1), [5], 4),
    "ForcedBOSTokenLogitsProcessor": lambda: tf.ForcedBOSTokenLogitsProcessor(5),
    "ForcedEOSTokenLogitsProcessor": lambda: tf.ForcedEOSTokenLogitsProcessor(9, 5),
    "InfNanRemoveLogitsProcessor": lambda: tf.InfNanRemoveLogitsProcessor(),
    "LogitNormalization": lambda: tf.LogitNormalization(),
    "MinLengthLogitsProcessor": lambda: tf.MinLengthLogitsProcessor(9, [5]),
    "MinNewTokensLengthLogitsProcessor": lambda: tf.MinNewTokensLengthLogitsProcessor(4, 5, [5]),
    "MinPLogitsWarper": lambda: tf.MinPLogitsWarper(0.1),
    "NoBadWordsLogitsProcessor": lambda: tf.NoBadWordsLogitsProcessor([[10], [11, 12]], [5]),
    "NoRepeatNGramLogitsProcessor": lambda: tf.NoRepeatNGramLogitsProcessor(2),
    "RepetitionPenaltyLogitsProcessor": lambda: tf.RepetitionPenaltyLogitsProcessor(
        1.3, torch.tensor([0, 3, 5])
    ),
    "SequenceBiasLogitsProcessor": lambda: tf.SequenceBiasLogitsProcessor(BIAS),
    "SuppressTokensAtBeginLogitsProcessor": lambda: tf.SuppressTokensAtBeginLogitsProcessor(
        [7, 8], 8
    ),
    "SuppressTokensLogitsProcessor": lambda: tf.SuppressTokensLogitsProcessor([7, 8]),
    "TemperatureLogitsWarper": lambda: tf.TemperatureLogitsWarper(0.7),
    "TopKLogitsWarper": lambda: tf.TopKLogitsWarper(7),
    "TopPLogitsWarper": lambda: tf.TopPLogitsWarper(0.8),
    "TypicalLogitsWarper": lambda: tf.TypicalLogitsWarper(0.7),
}


def test_every_listed_processor_is_compared() -> None:
    assert {kind.__name__ for kind in batches.ROW_BY_ROW} == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_processors_treat_each_row_alone(name: str) -> None:
    """All rows together, step by step; and each row alone, one after the other: the same scores."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 15, (3, 10), generator=generator)
    logits = torch.randn((10, 3, VOCAB), generator=generator) * 2
    logits[4, 1, 7] = logits[4, 1, 8]  # a tie
    together = LogitsProcessorList([MADE[name]()])
    expected = [together(ids[:, :end], logits[end - 1].clone()) for end in range(1, 11)]
    alone = LogitsProcessorList([MADE[name]()])
    changed = False
    for row in reversed(range(3)):
        own = batches.processors_of_row(alone, row)
        for step, end in enumerate(range(1, 11)):
            given = logits[end - 1, row : row + 1]
            found = own(ids[row : row + 1, :end], given.clone())
            assert torch.equal(found[0], expected[step][row])
            changed |= not torch.equal(found, given)
    assert changed or name == "InfNanRemoveLogitsProcessor"


@pytest.mark.parametrize("kind", sorted(batches.BY_LOGITS, key=lambda kind: kind.__name__))
def test_processors_that_do_not_look_at_the_text(kind: type) -> None:
    """Rows with and without texts, together and alone: the same scores."""
    assert kind in batches.ROW_BY_ROW
    processor = LogitsProcessorList([MADE[kind.__name__]()])
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, VOCAB), generator=generator) * 2
    ids = torch.randint(3, 15, (3, 10), generator=generator)
    together = processor(ids[:, :0], logits.clone())
    for row in range(3):
        alone = processor(ids[row : row + 1, : 4 + row], logits[row : row + 1].clone())
        assert torch.equal(alone[0], together[row])


def test_processors_in_a_batch() -> None:
    model, inputs = make("llama"), batch([7, 24, 16])
    every = {
        "max_new_tokens": 24,
        "do_sample": True,
        "typical_p": 0.9,
        "bad_words_ids": [[10], [11, 12]],
        "sequence_bias": BIAS,
        "min_new_tokens": 5,
        "suppress_tokens": [20],
        "begin_suppress_tokens": [21],
        "renormalize_logits": True,
        "exponential_decay_length_penalty": (8, 1.05),
        "epsilon_cutoff": 1e-4,
        "eta_cutoff": 1e-4,
        "remove_invalid_values": True,
        **ENDS,
    }
    for seed in range(3):
        expected, state = plain(model, inputs, seed=seed, **every)
        output, after, plug = plugged(model, inputs, DRAFTERS, seed=seed, **every)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert not plug.stats.fallbacks
