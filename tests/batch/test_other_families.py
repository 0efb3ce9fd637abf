"""Batches of families that the identity tests do not cover, built by the sweep's recipe."""

from __future__ import annotations

import pytest
import torch

from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.rows import ReplayRows
from tests.helpers.runs import plain, plugged
from tests.sweep import inputs
from tests.sweep.recipe import VOCAB, build

NAMES = [
    "bert",
    "codegen",
    "deepseek_v2",
    "diffllama",
    "doge",
    "exaone4",
    "glm4",
    "granite",
    "hunyuan_v1_dense",
    "minimax_m2",
    "modernbert-decoder",
    "nemotron",
    "olmoe",
    "persimmon",
    "xglm",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry(name: str) -> None:
    model = build("causal", name)
    rows = [inputs.text(model, seed=seed, pads=pads) for seed, pads in ((1, 5), (2, 0), (3, 11))]
    every = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    ends = {"eos_token_id": list(range(4, 9)), "pad_token_id": 0}
    greedy = {"max_new_tokens": 30, "do_sample": False, **ends}
    expected, _ = plain(model, every, **greedy)
    drafter = ReplayRows(every, expected, {1: lambda at: at % 4 == 3}, rank=1, vocab=VOCAB)
    output, _, plug = plugged(model, every, drafter, **greedy)
    assert output.tolist() == expected.tolist()
    assert not plug.stats.fallbacks
    sampled = {"max_new_tokens": 20, "do_sample": True, "top_k": 0}
    expected, state = plain(model, every, **sampled)
    output, after, plug = plugged(model, every, list(DEFAULT_DRAFTERS), **sampled)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)
    assert plug.stats.forwards > 0
