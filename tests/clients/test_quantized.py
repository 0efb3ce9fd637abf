"""Quantized models: weights only, activations by token, by tensor, and with outliers taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_specplug import attach
from tests.clients.same import GREEDY, NEW, Outcome, assert_same, tiny
from tests.helpers.oracle import Replay
from tests.helpers.zoo import prompt


def same(model: Any) -> Outcome:
    inputs = prompt(model)
    return assert_same(model, lambda **settings: model.generate(**inputs, **settings))


def assert_nearly_same(model: Any) -> None:
    """A step of rounding apart: where greedy text first differs, it was close to a tie."""
    inputs = prompt(model)
    settings = {**GREEDY, "max_new_tokens": NEW}
    wanted = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    expected = wanted.sequences[0, -NEW:].tolist()
    plug = attach(model, Replay(expected), nodes=12)
    found = model.generate(**inputs, **settings)[0, -NEW:].tolist()
    assert plug.stats.calls or plug.stats.fallbacks
    for logits, one, other in zip(wanted.logits, expected, found, strict=True):
        if one != other:
            margin = float((logits[0, one] - logits[0, other]) / logits.std())
            assert margin < 0.15
            return


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
def test_quantize_dynamic(dtype: torch.dtype) -> None:
    """int8: one scale for all rows of a forward pass. float16: weights only."""
    model = torch.ao.quantization.quantize_dynamic(tiny(), {torch.nn.Linear}, dtype=dtype)
    outcome = same(model)
    assert outcome.reasons if dtype == torch.qint8 else outcome.drafted


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "IntxWeightOnlyConfig", "Float8WeightOnlyConfig"]
)
def test_torchao_weights(config: str) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny()
    torchao.quantize_(model, getattr(torchao, config)())
    assert same(model).drafted


def test_torchao_int4_weights() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny()
    try:
        torchao.quantize_(model, torchao.Int4WeightOnlyConfig(group_size=32))
    except ImportError as error:  # its kernels are a package of their own
        pytest.skip(str(error))
    assert same(model).drafted


def test_torchao_activations_by_tensor() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny()
    config = torchao.Int8DynamicActivationInt8WeightConfig(granularity=torchao.PerTensor())
    torchao.quantize_(model, config)
    assert same(model).reasons


def test_torchao_activations_by_token() -> None:
    """Rows do not depend on each other, but a difference of 1e-7 may move one by a step of 1/127:
    in rounding such models are like bfloat16."""
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny()
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    assert_nearly_same(model)


@pytest.mark.parametrize("activations", [None, "qint8", "qfloat8"])
def test_quanto(activations: str | None) -> None:
    """Activations have scales that were calibrated before, the same for all rows and passes."""
    quanto = pytest.importorskip("optimum.quanto")
    model = tiny()
    kind = None if activations is None else getattr(quanto, activations)
    quanto.quantize(model, weights=quanto.qint8, activations=kind)
    if kind is not None:
        with quanto.Calibration():
            model(**prompt(model))
    quanto.freeze(model)
    outcome = same(model)
    assert outcome.drafted or outcome.reasons


@pytest.mark.parametrize(
    ("settings", "drafted"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, True),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, True),
        ({"load_in_8bit": True, "llm_int8_threshold": 0.0}, True),
        ({"load_in_8bit": True}, False),  # a column where any row stands out is computed apart
    ],
    ids=["nf4", "fp4", "int8", "int8 with outliers"],
)
def test_bitsandbytes(settings: dict[str, Any], drafted: bool, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    from transformers import BitsAndBytesConfig

    from tests.helpers.zoo import _decoder

    _decoder("Llama", hidden_size=64, intermediate_size=128)().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(**settings),
        dtype=torch.float32,
        device_map="cpu",
    ).eval()
    outcome = same(model)
    assert outcome.drafted if drafted else outcome.reasons
