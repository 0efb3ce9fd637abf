"""Tests on a CUDA device: CUDA graph capture, identical tokens. Skipped without a device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from hf_specplug import attach, detach
from hf_specplug.verify import noise, static_forward
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.static import PADDED_WIDTHS
from tests.helpers.oracle import Replay
from tests.helpers.rows import ENDS, batch
from tests.helpers.runs import new_tokens
from tests.helpers.zoo import FAMILIES, make, prompt
from tests.hf.test_hidden import NEW, Recorder, assert_seen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DECODERS = [
    name for name, family in FAMILIES.items() if family.mode == "tree" and name != "whisper"
]


@pytest.fixture(autouse=True)
def _exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def on_gpu(name: str, dtype: torch.dtype = torch.float32) -> Any:
    model = copy.deepcopy(make(name, dtype))
    if model.get_experts_implementation():
        model.set_experts_implementation("batched_mm")
    return model.cuda()


def inputs_of(model: Any, **settings: Any) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in prompt(model, **settings).items()}


@pytest.mark.parametrize("name", DECODERS)
def test_captured_graphs(name: str) -> None:
    """Greedy calls and a sampled call: identical tokens, every padded width captured once."""
    model = on_gpu(name)
    inputs = inputs_of(model)
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    expected = model.generate(**inputs, **settings)
    plug = attach(model, drafters=Replay(new_tokens(expected, 40), rank=2), nodes=12)
    for _ in range(2):
        assert model.generate(**inputs, **settings).tolist() == expected.tolist()
    assert not plug.stats.fallbacks
    assert plug.stats.prepared <= 2  # 12 tokens are padded to 16, an empty draft to 1
    assert plug.stats.forwards < 60
    detach(model)
    sampling: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "top_k": 8}
    torch.manual_seed(3)
    expected = model.generate(**inputs, **sampling)
    state = torch.cuda.get_rng_state()
    attach(model)
    torch.manual_seed(3)
    assert model.generate(**inputs, **sampling).tolist() == expected.tolist()
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("how", ["eager", "compiled", "static cache"])
def test_other_engines(how: str) -> None:
    settings: dict[str, Any] = {
        "eager": {"disable_compile": True},
        "compiled": {"compile_config": CompileConfig()},
        "static cache": {"cache_implementation": "static"},
    }[how]
    model = on_gpu("llama")
    inputs = inputs_of(model)
    expected = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    plug = attach(model, nodes=8)
    for _ in range(2):
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False, **settings)
        assert output.tolist() == expected.tolist()
    assert not plug.stats.fallbacks
    assert (plug.stats.prepared > 0) == (how != "eager")


def test_a_text_that_outgrows_its_slots() -> None:
    model = on_gpu("llama")
    model.config.max_position_embeddings = 4096
    inputs = inputs_of(model, length=200)
    expected = model.generate(**inputs, max_new_tokens=1500, do_sample=False)
    attach(model, nodes=16)
    assert model.generate(**inputs, max_new_tokens=1500, do_sample=False).equal(expected)


def test_warmup_leaves_nothing_to_prepare() -> None:
    model = on_gpu("llama")
    plug = attach(model)
    plug.warmup(max_length=600)
    plug.stats.reset()
    for length in range(10, 400, 30):
        inputs = inputs_of(model, length=length)
        model.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert plug.stats.prepared == 0


def test_outputs_are_those_of_the_cpu() -> None:
    logits = torch.randn(7, 1000)
    here, there = Outputs(logits), Outputs(logits.cuda())
    assert [here.pick(node) for node in range(7)] == [there.pick(node) for node in range(7)]
    assert (here.topk().ids == there.topk().ids).all()
    assert abs(here.topk().probs - there.topk().probs).max() < 1e-6


def test_bfloat16_tokens_are_the_targets_own() -> None:
    """Every token is, up to rounding, the most likely one after the text before it."""
    model = on_gpu("llama", torch.bfloat16)
    inputs = inputs_of(model)
    plug = attach(model, nodes=PADDED_WIDTHS[2])
    output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    assert plug.stats.prepared > 0
    with torch.no_grad():
        logits = model(output).logits[0, inputs["input_ids"].shape[1] - 1 : -1].float()
    chosen = logits.gather(1, output[0, inputs["input_ids"].shape[1] :, None])[:, 0]
    assert (logits.max(dim=1).values - chosen).max() < 0.05 * logits.std()


@pytest.mark.parametrize("width", [96, 32_000, 151_936])
def test_the_noise_of_sampling_is_foreseen(width: int) -> None:
    """The known sampling noise predicts the coming picks on this device, too."""
    noise.known.cache_clear()
    assert noise.known(torch.device("cuda", torch.cuda.current_device()), width)


def test_peeking_leaves_sampled_tokens_alone() -> None:
    model = on_gpu("llama")
    inputs = inputs_of(model)
    settings: dict[str, Any] = {"max_new_tokens": 60, "do_sample": True, "top_k": 0}
    for seed in range(4):
        torch.manual_seed(seed)
        expected = model.generate(**inputs, **settings)
        state = torch.cuda.get_rng_state()
        plug = attach(model, nodes=16)
        torch.manual_seed(seed)
        assert model.generate(**inputs, **settings).tolist() == expected.tolist()
        assert torch.equal(torch.cuda.get_rng_state(), state)
        assert plug.stats.accepted_by["gumbel"]
        detach(model)


def test_hidden_states_come_out_of_graphs() -> None:
    model, inputs = on_gpu("llama"), inputs_of(make("llama"))
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    expected = model.generate(**inputs, **settings)
    recorder = Recorder()
    replay = Replay(new_tokens(expected, NEW), wrong=lambda place: place % 3 == 2, rank=1)
    plug = attach(model, drafters=[replay, recorder], nodes=8)
    for _ in range(2):  # captured, then replayed
        assert model.generate(**inputs, **settings).tolist() == expected.tolist()
    assert plug.stats.prepared
    detach(model)
    on_cpu = {name: value.cpu() for name, value in inputs.items()}
    assert_seen(model.cpu(), on_cpu, expected.cpu(), recorder, 1e-3)


@pytest.mark.parametrize("engine", ["static_ragged", "ragged"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_batches(name: str, engine: str) -> None:
    """Greedy and sampled: identical tokens and generator state; rows end at different times."""
    model = on_gpu(name)
    inputs = {key: value.cuda() for key, value in batch([7, 24, 1, 16]).items()}
    for sample in (False, True):
        settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": sample, **ENDS}
        settings["disable_compile"] = engine == "ragged"
        torch.manual_seed(3)
        expected = model.generate(**inputs, **settings)
        state = torch.cuda.get_rng_state()
        plug = attach(model)
        torch.manual_seed(3)
        assert model.generate(**inputs, **settings).tolist() == expected.tolist()
        assert torch.equal(torch.cuda.get_rng_state(), state)
        assert plug.stats.engines == {f"tree, {engine}": 1}
        assert (plug.stats.prepared > 0) == (engine == "static_ragged")
        detach(model)


def test_batches_of_changing_sizes_keep_their_graphs() -> None:
    model = on_gpu("llama")
    every = [
        {key: value.cuda() for key, value in batch([7, 24, 1, 16][:n]).items()} for n in (4, 2)
    ]
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, **ENDS}
    expected = [model.generate(**inputs, **settings).tolist() for inputs in every]
    plug = attach(model, nodes=8)
    plug.warmup(max_length=200, rows=4)
    plug.stats.reset()
    for turn in range(4):
        assert model.generate(**every[turn % 2], **settings).tolist() == expected[turn % 2]
    assert plug.stats.prepared == 0
    assert plug.stats.engines == {"tree, static_ragged": 4}


def test_a_batch_that_outgrows_its_slots() -> None:
    """With the returned cache, in which rows that ended before others hold padding, too."""
    model = on_gpu("llama")
    model.config.max_position_embeddings = 4096
    inputs = {key: value.cuda() for key, value in batch([200, 7, 30]).items()}
    settings: dict[str, Any] = {"max_new_tokens": 1200, "do_sample": False, "eos_token_id": [5]}
    settings |= {"pad_token_id": 0, "return_dict_in_generate": True}
    expected = model.generate(**inputs, **settings)
    plug = attach(model, nodes=16)
    output = model.generate(**inputs, **settings)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert plug.stats.engines == {"tree, static_ragged": 1}
    pairs = zip(output.past_key_values.layers, expected.past_key_values.layers, strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own.keys, other.keys, rtol=1e-2, atol=1e-3)


def test_large_slots_of_a_batch_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_forward, "kept_bytes", lambda device: 0)
    model = on_gpu("llama")
    inputs = {key: value.cuda() for key, value in batch([7, 24]).items()}
    plug, held = attach(model), []
    for _ in range(6):
        model.generate(**inputs, max_new_tokens=20, do_sample=False)
        held.append(torch.cuda.memory_allocated())
    assert plug.stats.prepared > 0
    assert held[-1] == held[2]
