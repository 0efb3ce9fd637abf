"""Batches of encoder-decoder models: token identity with plain `generate` of the same batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hf_specplug import attach, detach
from hf_specplug.hf.encoder_rows import EncoderRows
from hf_specplug.hf.row_positions import RowPositions
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.batch.test_returned import RETURNED, same_cache
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make
from tests.sweep import inputs as sweep_inputs
from tests.sweep.recipe import VOCAB, build

DRAFTERS = list(DEFAULT_DRAFTERS)
LENGTHS = [7, 24, 1, 16, 3, 20, 12, 2]
TEXTS = ["t5", "bart"]
START = [2]
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "ends": {"do_sample": False, **ENDS},
    "sampled": {"do_sample": True, "top_k": 0, **ENDS},
    "processed": {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2, **ENDS},
}


def texts(count: int, right: bool = False) -> dict[str, torch.Tensor]:
    """Texts for an encoder, padded on the left or on the right."""
    found = batch(LENGTHS[:count], seed=count)
    if right:
        ends = zip(*found.values(), strict=True)
        rows = [(ids.roll(int(mask.sum())), mask.flip(0)) for ids, mask in ends]
        found = dict(zip(found, map(torch.stack, zip(*rows, strict=True)), strict=True))
    return found


def sound(count: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {"input_features": torch.randn(count, 8, 60, generator=generator).to(dtype)}


def identical(model: Any, inputs: Any, drafters: Any, **settings: Any) -> Any:
    """The plug, after a call that gave what plain `generate` gives."""
    expected, state = plain(model, inputs, **settings)
    if drafters is None:
        wrong = {0: lambda at: at % 3 == 2, 2: lambda at: at % 4 == 1}
        drafters = ReplayRows(inputs, expected, wrong, ranks={1: 2}, rank=1, start=START)
    output, after, plug = plugged(model, inputs, drafters, **settings)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert not plug.stats.fallbacks
    assert plug.stats.forwards > 0
    return plug


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, kind: str, count: int, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    for seed in range(2):
        every = {"max_new_tokens": 40, "seed": seed, **KINDS[kind]}
        inputs = texts(count, right=bool(seed))
        assert identical(model, inputs, None, **every).stats.accepted > 0
        identical(model, inputs, DRAFTERS, **every)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_sound(kind: str, dtype: torch.dtype) -> None:
    model = make("whisper", dtype)
    for count in (2, 3, 8):
        plug = identical(
            model, sound(count, dtype), DRAFTERS, max_new_tokens=40, seed=count, **KINDS[kind]
        )
        assert plug.stats.accepted > 0


@pytest.mark.parametrize("name", [*TEXTS, "whisper"])
def test_several_samples_of_each(name: str) -> None:
    model = make(name)
    inputs = texts(3) if name in TEXTS else sound(3)
    settings = {"do_sample": True, "max_new_tokens": 24, "num_return_sequences": 3}
    assert 9 in identical(model, inputs, DRAFTERS, **settings).stats.batches


@pytest.mark.parametrize("name", TEXTS)
def test_texts_for_the_decoder(name: str) -> None:
    """The decoder continues texts of different lengths, padded on the left."""
    model, inputs = make(name), texts(3)
    given = torch.tensor([[2, 11, 12, 13], [0, 0, 2, 14], [0, 2, 15, 16]])
    inputs |= {"decoder_input_ids": given, "decoder_attention_mask": (given != 0).long()}
    identical(model, inputs, DRAFTERS, do_sample=False, max_new_tokens=30)


@pytest.mark.parametrize("given", [1, 250])
def test_to_the_last_position(given: int) -> None:
    """No draft asks for positions that the model does not have; the rows are far apart."""
    model, inputs = make("bart"), texts(3)
    last = model.config.max_position_embeddings
    start = [2, *range(10, 90), *range(9, 90), *range(3, 90)][:given]
    inputs["decoder_input_ids"] = torch.tensor([start] * 3)
    settings = {"do_sample": False, "max_length": last, "output_logits": True}
    settings["return_dict_in_generate"] = True
    expected, _ = plain(model, inputs, **settings)
    texts_only = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    drafter = ReplayRows(texts_only, expected.sequences, {1: lambda at: True}, rank=1, start=start)
    output, _, plug = plugged(model, inputs, drafter, nodes=24, **settings)
    assert output.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(output.logits, expected.logits, atol=2e-4, rtol=2e-4)
    assert plug.stats.accepted > (last - given) / 2


@pytest.mark.parametrize("name", [*TEXTS, "whisper"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_logits_and_caches(name: str, kind: str) -> None:
    model = make(name)
    inputs = texts(4) if name in TEXTS else sound(4)
    every = {**RETURNED, **KINDS[kind]}
    expected, state = plain(model, inputs, **every)
    output, after, plug = plugged(model, inputs, DRAFTERS, **every)
    assert type(output) is type(expected)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert torch.equal(after, state)
    for found, wanted in ((output.scores, expected.scores), (output.logits, expected.logits)):
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
    for part in ("self_attention_cache", "cross_attention_cache"):
        own, other = (getattr(each.past_key_values, part) for each in (output, expected))
        assert same_cache(own, other)
    assert plug.stats.forwards > 0


@pytest.mark.parametrize("name", TEXTS)
def test_calls_at_the_same_time(name: str) -> None:
    """The position modules of a model serve batches and a single row in three threads."""
    model = make(name)
    every = [texts(3), texts(6), {key: value[:1] for key, value in texts(2).items()}]
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 30}
    expected = [plain(model, inputs, **settings)[0].tolist() for inputs in every]
    plug = attach(model, nodes=12)
    try:
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(model.generate, **one, **settings) for one in [*every, *every]]
            found = [call.result().tolist() for call in calls]
    finally:
        detach(model)
    assert found == [*expected, *expected]
    assert plug.stats.engines == {"tree, ragged": 4, "tree, eager": 2}


def outputs_differ(name: str) -> bool:
    model, inputs = make(name), texts(4)
    every = {"do_sample": False, "max_new_tokens": 40, **ENDS}
    expected, _ = plain(model, inputs, **every)
    wrong = {0: lambda at: at % 4 == 1, 1: lambda at: at % 3 == 2}
    drafter = ReplayRows(inputs, expected, wrong, ranks={0: 2, 1: 1}, start=START)
    output, _, plug = plugged(model, inputs, drafter, **every)
    assert plug.stats.forwards > 0
    return bool(output.tolist() != expected.tolist())


class Mutations:
    """Errors in what belongs to a row; each is a method and its replacement."""

    at, select = RowPositions.at, EncoderRows.select

    @staticmethod
    def of_another_row(self: RowPositions, depths: Any, lengths: Any) -> Any:
        return Mutations.at(self, depths, lengths[::-1].copy())

    @staticmethod
    def by_slot(self: RowPositions, depths: Any, lengths: Any) -> Any:
        ahead = torch.arange(depths.shape[1]).expand(depths.shape).numpy()
        return Mutations.at(self, ahead, lengths)

    @staticmethod
    def other_texts(self: EncoderRows, rows: Any) -> Any:
        return Mutations.select(self, [(row + 1) % 4 for row in rows])

    @staticmethod
    def other_mask(self: EncoderRows, rows: Any) -> Any:
        inputs = Mutations.select(self, rows)
        return {**inputs, "attention_mask": inputs["attention_mask"].roll(1, 0)}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("kind", "method", "mutation"),
    [
        (RowPositions, "at", Mutations.of_another_row),
        (RowPositions, "at", Mutations.by_slot),
        (EncoderRows, "select", Mutations.other_texts),
        (EncoderRows, "select", Mutations.other_mask),
    ],
)
def test_mutations_are_noticed(
    name: str, kind: Any, method: str, mutation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not outputs_differ(name)  # the trial has run: it would notice, too
    monkeypatch.setattr(kind, method, mutation)
    assert outputs_differ(name)


@pytest.mark.parametrize(
    "name", ["led", "longt5", "marian", "mbart", "mt5", "pegasus", "plbart", "switch_transformers"]
)
def test_other_families(name: str) -> None:
    model = build("seq2seq", name)
    every = texts(3, right=True)
    ends = {"eos_token_id": list(range(4, 9)), "pad_token_id": 0}
    for settings in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        settings |= {"max_new_tokens": 30, **ends}
        expected, state = plain(model, every, **settings)
        start = expected[0, :1].tolist()
        replay = ReplayRows(every, expected, rank=1, start=start, vocab=VOCAB)
        for drafters in (replay, DRAFTERS):
            output, after, plug = plugged(model, every, drafters, **settings)
            assert output.tolist() == expected.tolist()
            assert torch.equal(after, state)
            assert plug.stats.forwards > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("m2m_100", "positions that depend on the tokens"),
        ("umt5", "takes no position bias"),
        ("encoder-decoder", "a trial of bert found a chain's logits off"),
    ],
)
def test_families_that_run_plainly(name: str, reason: str) -> None:
    model = build("seq2seq", name)
    rows = [sweep_inputs.text(model, seed=seed) for seed in (1, 2)]
    inputs = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    expected, _ = plain(model, inputs, do_sample=False, max_new_tokens=20)
    output, _, plug = plugged(model, inputs, DRAFTERS, do_sample=False, max_new_tokens=20)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards == 0
    assert reason in next(iter(plug.stats.fallbacks))
