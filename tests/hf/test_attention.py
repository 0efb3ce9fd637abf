"""Folded attention gives the results of transformers' sdpa, and leaves the model unchanged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_specplug.hf import attention
from hf_specplug.hf.attention import NAME, FoldedHeads, folded_attention
from tests.helpers.zoo import make


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("mask", ["none", "bool", "additive"])
@pytest.mark.parametrize("values", [16, 24])
def test_same_as_sdpa(groups: int, rows: int, mask: str, values: int) -> None:
    query = torch.randn(1, 8, rows, 16, dtype=torch.float64)
    key = torch.randn(1, groups, 11, 16, dtype=torch.float64)
    value = torch.randn(1, groups, 11, values, dtype=torch.float64)
    visible = torch.rand(1, 1, rows, 11) < 0.5
    visible[..., 0] = True
    given: Any = {"none": None, "bool": visible}.get(mask, torch.zeros(()))
    if mask == "additive":
        given = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e9)
    module: Any = SimpleNamespace(num_key_value_groups=8 // groups, is_causal=True)
    one, _ = sdpa_attention_forward(module, query, key, value, given, scaling=0.3)
    other, weights = folded_attention(module, query, key, value, given, scaling=0.3)
    assert weights is None
    assert other.shape == one.shape
    assert other.is_contiguous()
    torch.testing.assert_close(other, one)


def test_only_while_entered_and_only_where_it_fits() -> None:
    for name, folded in (("llama", True), ("falcon", False)):
        model = make(name)
        config = model.config.get_text_config(decoder=True)
        assert config._attn_implementation == "sdpa"
        one, other = FoldedHeads(model), FoldedHeads(model)
        with one:
            assert config._attn_implementation == (NAME if folded else "sdpa")
            other.__enter__()
        other.__exit__()  # stands for another thread, which began in between
        assert config._attn_implementation == "sdpa"
    model = make("llama")
    with pytest.raises(KeyError), FoldedHeads(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    model.config._attn_implementation_internal = "eager"
    with FoldedHeads(model):
        assert model.config._attn_implementation == "eager"
    model.config._attn_implementation_internal = "sdpa"


def test_other_threads_attend_by_sdpa_itself() -> None:
    """Two plugs, two threads, one model: no pass uses the attention of the other thread's pass."""
    model = make("llama")
    ids = torch.arange(3, 40)[None]
    mask = torch.ones(1, 1, 37, 37, dtype=torch.bool).tril()

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(ids, attention_mask=mask).logits  # type: ignore[no-any-return]

    seen: list[str] = []

    def folded(*args: Any, **kwargs: Any) -> Any:
        seen.append("folded")
        return folded_attention(*args, **kwargs)

    expected = logits()
    with ThreadPoolExecutor(1) as other, pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "folded_attention", folded)
        with FoldedHeads(model):
            assert torch.equal(other.submit(logits).result(), expected)
            assert not seen
            heads = FoldedHeads(model)
            other.submit(heads.__enter__).result()
            torch.testing.assert_close(other.submit(logits).result(), expected)
            assert len(seen) == model.config.num_hidden_layers
        assert model.config._attn_implementation == NAME  # the other thread is in its pass
        assert torch.equal(logits(), expected)
        other.submit(heads.__exit__).result()
    assert model.config._attn_implementation == "sdpa"
