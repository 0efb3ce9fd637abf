"""Evidence for batches: models that the identity tests do not cover get a trial of two rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_specplug.exactness import evidence, trial
from hf_specplug.hf.plan import PLAIN, TREE
from hf_specplug.hf.row_cache import RowCache
from hf_specplug.plug import DEFAULT_DRAFTERS
from hf_specplug.verify.row_masks import RowMasks
from tests.exactness.test_evidence import fresh
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import chosen, plain, plugged
from tests.helpers.zoo import FAMILIES

TREES = [
    name
    for name, family in FAMILIES.items()
    if family.mode == TREE and family.kind == "decoder" and name != "qwen2-vl"
]


@pytest.fixture(autouse=True)
def nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PROVEN", frozenset())


def ready(name: str = "llama") -> Any:
    model = fresh(name)
    if model.get_experts_implementation():
        model.set_experts_implementation("eager")
    model.generation_config.pad_token_id = 0
    return model


@pytest.mark.parametrize("name", TREES)
def test_it_agrees_with_what_is_proven(name: str) -> None:
    model, state = ready(name), torch.get_rng_state()
    assert chosen(model, batch([7, 24])).mode == TREE
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_made_once_for_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    run_trial = trial.run_trial

    def counted(call: Any, plan: Any) -> Any:
        tried.append(call.rows)
        return run_trial(call, plan)

    monkeypatch.setattr(trial, "run_trial", counted)
    model = ready()
    for lengths in ([7, 24], [5, 9, 12], [12], [9, 9], [24, 3]):
        inputs = batch(lengths)
        expected, _ = plain(model, inputs, do_sample=False, max_new_tokens=24, **ENDS)
        drafter = ReplayRows(inputs, expected, {0: lambda position: position % 3 == 1}, rank=1)
        output, _, plug = plugged(
            model, inputs, drafter, do_sample=False, max_new_tokens=24, **ENDS
        )
        assert output.tolist() == expected.tolist()
        assert plug.stats.forwards > 0
    assert tried == [2, 1, 2]  # padded batch, one row, batch without padding


@pytest.mark.parametrize("part", ["slots", "rows that leave", "positions"])
def test_it_finds_what_is_wrong(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, select, build = RowCache.keep, RowCache.select, RowMasks.build
    if part == "slots":
        monkeypatch.setattr(
            RowCache, "keep", lambda self, kept: keep(self, [range(len(own)) for own in kept])
        )
    elif part == "rows that leave":
        monkeypatch.setattr(RowCache, "select", lambda self, rows: select(self, [0]))
    else:
        monkeypatch.setattr(
            RowMasks, "build", lambda self, seen, *rest: build(self, seen[::-1].copy(), *rest)
        )
    found = chosen(ready(), batch([7, 24]))
    assert found.mode == PLAIN
    assert "trial" in found.reason


class Mixing(nn.Module):
    """Adds to each row the mean over all rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y + 0.3 * y.mean(0, keepdim=True)  # type: ignore[no-any-return]


def test_rows_that_depend_on_each_other_run_plainly() -> None:
    model = ready()
    mlp = model.model.layers[0].mlp
    mlp.down_proj = Mixing(mlp.down_proj)
    inputs = batch([7, 24])
    expected, _ = plain(model, inputs, do_sample=False, max_new_tokens=12)
    output, _, plug = plugged(
        model, inputs, list(DEFAULT_DRAFTERS), do_sample=False, max_new_tokens=12
    )
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards == 0
    assert "trial" in next(iter(plug.stats.fallbacks))


def test_dropout_in_train_mode_runs_plainly_and_train_mode_without_it_drafts() -> None:
    model = ready("llama").train()
    assert chosen(model, batch([7, 24])).mode == TREE
    model = ready("gpt2").train()
    found = chosen(model, batch([7, 24]))
    assert found.mode == PLAIN
    assert "train mode" in found.reason


def test_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    model = ready()
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval().get_base_model()
    inputs = batch([7, 24, 16])
    expected, _ = plain(adapted, inputs, do_sample=False, max_new_tokens=24, **ENDS)
    drafter = ReplayRows(inputs, expected, rank=1)
    output, _, plug = plugged(adapted, inputs, drafter, do_sample=False, max_new_tokens=24, **ENDS)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards > 0
    assert not plug.stats.fallbacks
