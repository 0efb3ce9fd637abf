"""Gates: which calls are verified as trees, as chains or not at all; the probe; the reasons."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicIndexedLayer

from hf_specplug import attach, detach
from hf_specplug.hf import support
from hf_specplug.hf.cache import capacity, overwrites, rollback
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE
from tests.helpers.oracle import Replay
from tests.helpers.runs import chosen, plain, plugged
from tests.helpers.zoo import FAMILIES, make, prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mode_of_every_family(name: str) -> None:
    model = make(name)
    found = chosen(model, prompt(model))
    assert found.mode == FAMILIES[name].mode
    assert bool(found.reason) == (found.mode != TREE)


def test_other_attention_gets_chains() -> None:
    torch.manual_seed(0)
    model = FAMILIES["llama"].build().eval()
    model.config._attn_implementation_internal = "flash_attention_2"
    found = support.of_model(model)
    assert found.mode == CHAIN
    assert "flash_attention_2" in found.reason


def test_reasons_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make("mamba2")
    plug = attach(model)
    with caplog.at_level(logging.WARNING, "hf_specplug"):
        for _ in range(3):
            model.generate(**prompt(model), max_new_tokens=3)
    detach(model)
    assert list(plug.stats.fallbacks.values()) == [3]
    assert len([record for record in caplog.records if "recurrent" in record.message]) == 1


def test_longrope_stays_on_one_side_of_its_switch() -> None:
    import transformers as tf

    torch.manual_seed(0)
    factors = [1.0 + i / 2 for i in range(4)]
    model = tf.Phi3ForCausalLM(
        tf.Phi3Config(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            original_max_position_embeddings=40,
            pad_token_id=0,
            initializer_range=0.3,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": factors,
                "original_max_position_embeddings": 40,
            },
        )
    ).eval()
    model.generation_config.eos_token_id = None
    for length, count, drafted in ((20, 19, True), (20, 40, False), (50, 30, True)):
        inputs = prompt(model, length=length)
        settings: dict[str, Any] = {"max_new_tokens": count, "do_sample": False}
        expected, _ = plain(model, inputs, **settings)
        output, _, plug = plugged(model, inputs, ["context", "recycling"], **settings)
        assert output.tolist() == expected.tolist()
        assert bool(plug.stats.calls) == drafted
        if not drafted:
            assert "longrope" in next(iter(plug.stats.fallbacks))


def test_dynamic_rope_below_its_limit() -> None:
    model = make("llama-dynamic-rope")
    inputs = prompt(model, length=20)
    for count, drafted in ((12, True), (20, False), (12, True)):
        settings: dict[str, Any] = {"max_new_tokens": count, "do_sample": False}
        expected, _ = plain(model, inputs, **settings)
        output, _, plug = plugged(model, inputs, ["context", "recycling"], **settings)
        assert output.tolist() == expected.tolist()
        assert bool(plug.stats.calls) == drafted


def test_mpt_gets_the_cache_that_its_configuration_leaves_out() -> None:
    torch.manual_seed(0)
    model = FAMILIES["mpt"].build().eval()
    model.config.use_cache = model.generation_config.use_cache = False  # MPT's default
    inputs, settings = prompt(model), {"max_new_tokens": 30, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    output, _, plug = plugged(model, inputs, ["context"], **settings)
    assert output.tolist() == expected.tolist()
    assert plug.stats.calls == 1
    _, _, plug = plugged(model, inputs, ["context"], **settings, use_cache=False)
    assert plug.stats.calls == 0
    assert "use_cache=True" in next(iter(plug.stats.fallbacks))


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "mistral-window", "llama4"])
@pytest.mark.parametrize("length", [8, 24])
def test_static_windows_that_the_text_outgrows(name: str, length: int) -> None:
    """On the eager engine, the cache ends up as after plain decoding."""
    model = make(name)
    inputs = prompt(model, length=length)
    every: dict[str, Any] = {
        "max_new_tokens": 40,
        "do_sample": False,
        "return_dict_in_generate": True,
        "cache_implementation": "static",
        "disable_compile": True,
    }
    expected, _ = plain(model, inputs, **every)
    tokens = expected.sequences[0, -40:].tolist()
    for drafter in (
        Replay(tokens, rank=1),
        Replay(tokens, wrong=lambda position: position % 3 == 1),
    ):
        output, _, plug = plugged(model, inputs, drafter, **every)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert not plug.stats.fallbacks
        for one, other in zip(
            expected.past_key_values.layers, output.past_key_values.layers, strict=True
        ):
            assert torch.allclose(one.keys, other.keys, atol=1e-4)
            assert int(one.get_seq_length()) == int(other.get_seq_length())


def test_what_caches_can_take_back() -> None:
    config = make("llama").config
    assert rollback(DynamicCache(config=config)) == (TREE, "")
    assert rollback(DynamicCache()) == (TREE, "")
    assert rollback(StaticCache(config=config, max_cache_len=50)) == (TREE, "")
    assert capacity(StaticCache(config=config, max_cache_len=50)) == 50
    assert capacity(DynamicCache(config=config)) > 10**6
    sliding = StaticCache(config=make("gemma3").config, max_cache_len=50)
    assert rollback(sliding) == (TREE, "")
    assert overwrites(sliding, 60)
    assert not overwrites(sliding, 16)
    assert rollback(DynamicCache(config=config, offloading=True))[0] == PLAIN
    assert rollback(None)[0] == PLAIN
    indexed = DynamicCache()
    indexed.layers.append(DynamicIndexedLayer())
    assert rollback(indexed)[0] == TREE
    quantized = DynamicCache()
    quantized.layers.append(object.__new__(_quantized_layer()))
    assert rollback(quantized)[0] == PLAIN


def _quantized_layer() -> type:
    from transformers.cache_utils import QuantizedLayer

    class Some(QuantizedLayer):  # type: ignore[misc]
        def _quantize(self, *arguments: Any) -> Any: ...
        def _dequantize(self, *arguments: Any) -> Any: ...

    return Some
