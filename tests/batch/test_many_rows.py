"""Seventeen rows of 1 to 300 tokens, many seeds, every tree family; and what long use leaves."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_specplug import attach, detach
from hf_specplug.hf import row_cache
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.batch.test_identity import TREES
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make

DRAFTERS = list(DEFAULT_DRAFTERS)
LENGTHS = [300, 1, 150, 24, 7, 90, 12, 220, 3, 60, 18, 2, 270, 40, 5, 120, 33]
PROCESSED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_every_tree_family(name: str) -> None:
    """Greedy, and eight seeds with the usual processors; the first two with long prompts."""
    model = make(name)
    longest = 300 if hasattr(model.config, "rope_parameters") else 240  # positions end at 256
    long, short = (
        batch([min(length, most - row) for row, length in enumerate(LENGTHS)])
        for most in (longest, 40)
    )
    every: list[dict[str, Any]] = [{"do_sample": False, "seed": 0}]
    every += [{"do_sample": True, "seed": seed, **PROCESSED} for seed in range(8)]
    plug = attach(model, nodes=8)
    try:
        for place, settings in enumerate(every):
            inputs, seed = long if place < 2 else short, settings.pop("seed")
            settings |= {"max_new_tokens": 8, "eos_token_id": [3, 4], "pad_token_id": 0}
            expected, state = plain(model, inputs, seed, **settings)
            torch.manual_seed(seed)
            assert model.generate(**inputs, **settings).tolist() == expected.tolist()
            assert torch.equal(torch.get_rng_state(), state)
    finally:
        detach(model)
    assert max(plug.stats.batches) == 17
    assert plug.stats.calls == 9
    assert plug.stats.accepted > 20
    assert not plug.stats.dropped
    assert not plug.stats.fallbacks


def memory() -> float:
    """Memory of this process in MiB, as the system counts it."""
    gc.collect()
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_flat_over_many_calls() -> None:
    """2,000 calls of changing sizes; what drafters learn is bounded, and full after the first."""
    model = make("gpt2")
    sizes = [2, 5, 3, 8, 4, 2, 7, 6]
    every = [batch([3 + (row + size) % 5 for row in range(size)], seed=size) for size in sizes]
    held, tensors = [], []
    plug = attach(model, nodes=4, drafters=["context", "recycling"])
    try:
        for count in range(2000):
            model.generate(**every[count % 8], do_sample=False, max_new_tokens=2)
            if count % 250 == 249:
                held.append(memory())
                tensors.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
    finally:
        detach(model)
    assert sum(plug.stats.batches.values()) == 2000
    assert len(set(tensors)) == 1
    assert max(held[3:]) < held[2] + 8  # a lost cache per call would be 150 MiB


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt2"])
def test_slots_grow_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no slots to spare, each row that runs out makes all grow; no text is lost."""
    grow, grown = row_cache.RowCache._grow, []

    def counted(self: row_cache.RowCache, capacity: int) -> None:
        grown.append(capacity)
        grow(self, capacity)

    monkeypatch.setattr(row_cache, "_capacity", lambda needed: needed)
    monkeypatch.setattr(row_cache.RowCache, "_grow", counted)
    model, inputs = make(name), batch([7, 24, 16])
    for settings in ({"do_sample": False, **ENDS}, {"do_sample": True, "top_k": 0}):
        settings |= {"max_new_tokens": 60, "return_dict_in_generate": True}
        expected, state = plain(model, inputs, **settings)
        drafter = ReplayRows(inputs, expected.sequences, {0: lambda at: at % 2 == 1}, rank=1)
        output, after, plug = plugged(model, inputs, drafter, nodes=12, **settings)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert torch.equal(after, state)
        assert plug.stats.accepted > 0
    assert len(grown) > 10
