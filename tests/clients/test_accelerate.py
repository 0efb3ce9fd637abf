"""accelerate: prepared, dispatched, with layers on disk, and offloaded altogether."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.clients.same import assert_same, tiny
from tests.helpers.zoo import prompt

accelerate = pytest.importorskip("accelerate")

SPLIT = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def _with_hook(model: Any, folder: Path) -> Any:
    return accelerate.cpu_offload_with_hook(model, "cpu")[0]


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "prepare": lambda model, folder: accelerate.Accelerator(cpu=True).prepare(model),
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk_offload": lambda model, folder: accelerate.disk_offload(
        model, str(folder), execution_device="cpu"
    ),
    "cpu_offload_with_hook": _with_hook,
}


@pytest.mark.parametrize("way", WAYS)
def test_offloaded_by_hand(way: str, tmp_path: Path) -> None:
    """Offloaded altogether, all weights are on "meta" between forward passes."""
    model = tiny()
    inputs = prompt(model)
    model = WAYS[way](model, tmp_path)
    outcome = assert_same(model, lambda **settings: model.generate(**inputs, **settings))
    assert outcome.drafted or outcome.reasons


@pytest.mark.parametrize("places", ["auto", {"": "cpu"}, SPLIT, {"": "disk"}], ids=str)
def test_device_maps(places: Any, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map=places,
        offload_folder=str(tmp_path / "offload"),
        dtype=torch.float32,
    ).eval()
    inputs = prompt(model)
    outcome = assert_same(model, lambda **settings: model.generate(**inputs, **settings))
    assert outcome.drafted or (places == {"": "disk"} and outcome.reasons)
