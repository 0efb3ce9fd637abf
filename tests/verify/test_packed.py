"""Packed weights: the results of the plain layers, no stale weights, and the model restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hf_specplug import attach, detach
from hf_specplug.verify import packed, packing_trial
from hf_specplug.verify.packed import PackedLinears, available_memory, packed_linears
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import FAMILIES, make, prompt


@pytest.fixture
def _forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack tiny layers too, from the first forward pass on."""
    monkeypatch.setattr(packed, "PACK_AFTER", 1)
    monkeypatch.setattr(packed, "COMPARE_AFTER", 1)
    monkeypatch.setattr(packing_trial, "WORTHWHILE", float("inf"))


forced = pytest.mark.usefixtures("_forced")


def patched(model: nn.Module) -> int:
    return sum(type(module) is packed._PackedLinear for module in model.modules())


class Layers(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40, dtype=dtype)
        self.second = nn.Linear(40, 7, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def call(model: Layers, linears: PackedLinears, x: torch.Tensor) -> torch.Tensor:
    linears.open(model)
    try:
        linears.step()
        assert patched(model) == 2
        with torch.no_grad(), linears:
            return model(x)
    finally:
        linears.close()
        assert patched(model) == 0


@forced
@pytest.mark.parametrize("name", [n for n, family in FAMILIES.items() if family.mode != "plain"])
def test_identity(name: str) -> None:
    """Every family in float32; the first call packs, the second one reuses the packed weights."""
    model = make(name)
    inputs = prompt(model)
    settings: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    drafter = Replay(new_tokens(expected, 24), wrong=lambda position: position % 3 == 2, rank=1)
    attach(model, drafters=drafter, nodes=12)
    try:
        for _ in range(2):
            assert model.generate(**inputs, **settings).tolist() == expected.tolist()
            assert patched(model) == 0
        linear = any(type(module) is nn.Linear for module in model.modules())
        assert bool(packed_linears(model)._packed) == linear
    finally:
        detach(model)


@forced
def test_false_packs_nothing() -> None:
    model = make("llama")
    plug = attach(model, pack=False)
    try:
        model.generate(**prompt(model), max_new_tokens=24, do_sample=False)
    finally:
        detach(model)
    assert plug._runner.sessions[model]._packed is None


@forced
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 8, 33])
def test_layers(dtype: torch.dtype, rows: int) -> None:
    model = Layers(dtype)
    x = torch.randn(1, rows, 24).to(dtype)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(call(model, PackedLinears(), x), expected)


class Clock:
    """Instead of timing: what a round over plain or packed layers takes."""

    def __init__(self, packed_time: Callable[[int], float]) -> None:
        self.packed_time = packed_time

    def __call__(self, plain: list[Any], packed: list[Any]) -> tuple[float, float]:
        assert {call.func for call in packed} == {packing_trial.packed_linear}
        return 1.0, self.packed_time(len(packed[0].args[0]))


@pytest.mark.parametrize(
    ("packed_time", "rows"),
    [
        (lambda rows: 0.5, 1),
        (lambda rows: 1.2 if rows < 8 else 0.5, 8),
        (lambda rows: 0.5 if rows == 4 else 1.2 if rows < 16 else 0.89, 16),
        (lambda rows: 0.95, None),
    ],
)
def test_the_trial_says_from_how_many_rows_on(
    packed_time: Callable[[int], float], rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below that many rows a layer computes what it does without packing, bit for bit."""
    monkeypatch.setattr(packing_trial, "best_times", Clock(packed_time))
    monkeypatch.setattr(packed, "PACK_AFTER", 1)
    monkeypatch.setattr(packed, "COMPARE_AFTER", 1)
    used: list[int] = []

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        used.append(len(x))
        return packing_trial.packed_linear(x, weight, bias)

    monkeypatch.setattr(packed, "packed_linear", watched)
    model, linears = Layers(), PackedLinears()
    linears.open(model)
    linears.step()
    for count in (1, 3, 4, 7, 8, 15, 16, 64):
        x = torch.randn(count, 24)
        used.clear()
        with torch.no_grad(), linears:
            actual = model(x)
        assert used == ([count] * 2 if rows is not None and count >= rows else [])
        expected = nn.functional.linear(x, model.first.weight, model.first.bias)
        expected = nn.functional.linear(expected, model.second.weight)
        torch.testing.assert_close(actual, expected)
    linears.close()
    assert bool(linears._packed) == (rows is not None)


def test_each_kind_of_layer_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide layer that gains is packed beside narrow ones that do not."""

    def times(plain: list[Any], packed: list[Any]) -> tuple[float, float]:
        return 1.0, 0.5 if packed[0].args[0].shape[1] > 8 else 1.0

    monkeypatch.setattr(packing_trial, "best_times", times)
    monkeypatch.setattr(packed, "PACK_AFTER", 1)
    monkeypatch.setattr(packed, "COMPARE_AFTER", 1)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(7)], nn.Linear(8, 16), nn.Linear(16, 8))
    linears = PackedLinears()
    linears.open(model)
    linears.step()
    assert [type(layer) is packed._PackedLinear for layer in model] == [False] * 8 + [True]
    linears.close()


@forced
@pytest.mark.parametrize("how", ["data", "version", "new parameter", "swap"])
def test_changed_weights_are_seen(how: str) -> None:
    model, linears, x = Layers(), PackedLinears(), torch.randn(3, 24)
    before = call(model, linears, x)
    weight = model.first.weight
    if how == "data":  # as merging an adapter does; torch's version counter does not see it
        weight.data[5, 3] += 1.0
    elif how == "version":
        with torch.no_grad():
            weight[39, 23] *= 2.0
    elif how == "new parameter":
        model.first.weight = nn.Parameter(torch.randn_like(weight))
    else:
        model.second = nn.Linear(40, 7, bias=False)
    with torch.no_grad():
        expected = model(x)
    assert not torch.equal(expected, before)
    torch.testing.assert_close(call(model, linears, x), expected)
    assert len(linears._packed) == 2  # no old copy is kept


@forced
def test_a_parameter_set_during_a_call_and_gradients_use_the_layer_itself() -> None:
    model, linears, x = Layers(), PackedLinears(), torch.randn(3, 24)
    linears.open(model)
    linears.step()
    model.first.weight = nn.Parameter(torch.randn_like(model.first.weight))
    with linears:
        with torch.no_grad():
            result = model(x)
        model(x).sum().backward()
    linears.close()
    with torch.no_grad():
        torch.testing.assert_close(result, model(x))
    assert model.first.weight.grad is not None
    assert model.second.weight.grad is not None


@forced
def test_an_error_leaves_no_trace() -> None:
    model = make("llama")
    broken = model.generation_config.max_length

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if ids.shape[1] > 30:
            assert patched(model) > 0
            raise KeyboardInterrupt
        return torch.zeros(1, dtype=torch.bool)

    attach(model)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.generate(**prompt(model), max_new_tokens=24, stopping_criteria=[stop])
    finally:
        detach(model)
    assert patched(model) == 0
    assert model.generation_config.max_length == broken
    copy.deepcopy(model)


@forced
def test_foreign_layers_are_left_alone() -> None:
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(
        Mine(8, 8), nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8), nn.Linear(8, 8)
    )
    model[3].weight = nn.Parameter(torch.randn(8, 8).t())
    own = model[2].forward
    vars(model[2])["forward"] = own  # as offloading libraries do
    linears = PackedLinears()
    linears.open(model)
    linears.step()
    assert not linears._packed
    linears.close()
    assert vars(model[2])["forward"] is own


@forced
def test_a_compiled_model_is_left_alone() -> None:
    model = Layers()
    model.first.compile()  # compilation happens only at the first forward pass
    linears = PackedLinears()
    linears.open(model)
    linears.step()
    assert not linears._packed


@forced
@pytest.mark.parametrize(("spare", "packs"), [(0.0, False), (1e12, True)])
def test_memory_decides(monkeypatch: pytest.MonkeyPatch, spare: float, packs: bool) -> None:
    monkeypatch.setattr(packed, "available_memory", lambda: spare)
    linears = PackedLinears()
    linears.open(Layers())
    linears.step()
    assert bool(linears._packed) == packs
    linears.close()


def test_a_short_first_call_packs_nothing() -> None:
    model = make("llama")
    _, _, plug = plugged(model, prompt(model), ["context"], max_new_tokens=8, do_sample=False)
    assert not plug._runner.sessions[model]._packed._packed


def test_available_memory_is_plausible() -> None:
    assert 0 <= available_memory() < 1 << 50


@forced
def test_a_short_call_does_not_compare_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all weights costs a short answer more than packed weights would save."""
    model, linears, x = Layers(), PackedLinears(), torch.randn(3, 24)
    call(model, linears, x)
    monkeypatch.setattr(packed, "COMPARE_AFTER", 3)
    compared: list[torch.Tensor] = []
    fingerprint = packed._fingerprint
    monkeypatch.setattr(
        packed, "_fingerprint", lambda weight: (compared.append(weight), fingerprint(weight))[1]
    )
    linears.open(model)
    try:
        for count in (0, 0, 2, 2):
            linears.step()
            assert patched(model) == len(compared) == count
    finally:
        linears.close()
    assert patched(model) == 0
