"""The gated delta rule and its convolution over trees, against walks over every path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hf_specplug.hf import delta_rule, tree_windows
from hf_specplug.hf.linear_attention import Recurrence
from tests.helpers import walks

HEADS, SHARED, DK, DV = 4, 2, 6, 5


@dataclass
class Inputs:
    """Random inputs of a rule for T tokens; decays down to exp(-`strength`) per token."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    decay: torch.Tensor
    beta: torch.Tensor
    state: torch.Tensor


def inputs(width: int, channels: bool, strength: float, seed: int) -> Inputs:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    key_heads = HEADS // SHARED
    decay = (width, HEADS, DK) if channels else (width, HEADS)
    return Inputs(
        query=normal(1, width, key_heads, DK),
        key=normal(1, width, key_heads, DK),
        value=normal(1, width, HEADS, DV),
        decay=-strength * torch.rand((1, *decay), generator=draw, dtype=torch.float64),
        beta=2 * torch.rand((1, width, HEADS), generator=draw, dtype=torch.float64),
        state=normal(1, HEADS, DK, DV),
    )


def solve(x: Inputs, seen: NDArray[np.bool_]) -> tuple[torch.Tensor, Recurrence]:
    parts = x.query, x.key, x.value, x.decay, x.beta, x.state
    return delta_rule.solve(*parts, torch.from_numpy(seen), normalize=True)


def walked(x: Inputs, path: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(outputs [H, dv] at the end of a path, states [H, dk, dv] after it), by the plain twin."""
    units = [
        (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt()).numpy()[0]
        for part in (x.query, x.key)
    ]
    pairs = []
    for head in range(HEADS):
        query, key = (unit[:, head // SHARED] for unit in units)
        decay = x.decay[0, :, head].reshape(len(query), -1).numpy()
        value, beta, state = x.value[0, :, head], x.beta[0, :, head], x.state[0, head]
        arrays = value.numpy(), decay, beta.numpy(), state.numpy()
        pairs.append(walks.delta_rule(path, query * DK**-0.5, key, *arrays))
    outputs, states = zip(*pairs, strict=True)
    return np.stack(outputs), np.stack(states)


def largest_error(x: Inputs, parents: list[int], seen: NDArray[np.bool_]) -> float:
    """The largest error of outputs and states at all nodes, if the nodes see `seen`."""
    outputs, solution = solve(x, seen)
    errors = []
    for node, path in enumerate(walks.paths(parents)):
        output, state = walked(x, path)
        after = solution.after(torch.tensor(path))[0].numpy()
        errors += [np.abs(outputs[0, node].numpy() - output).max(), np.abs(after - state).max()]
    return float(max(errors))


@st.composite
def trees(draw: st.DrawFn, most: int = 24) -> list[int]:
    count = draw(st.integers(1, most))
    return [-1, *(draw(st.integers(0, node - 1)) for node in range(1, count))]


@given(trees(), st.booleans(), st.sampled_from([0.01, 1.0, 80.0, 2000.0]), st.integers(0, 2**32))
def test_a_tree_is_all_its_paths(
    parents: list[int], channels: bool, strength: float, seed: int
) -> None:
    x = inputs(len(parents), channels, strength, seed)
    assert largest_error(x, parents, walks.seen(parents)) < 1e-12


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("near", [1, 2, 5, 64])
def test_64_nodes(near: int, channels: bool) -> None:
    parents = walks.random_parents(64, near, near)
    x = inputs(64, channels, 0.5, near)
    assert largest_error(x, parents, walks.seen(parents)) < 1e-12


@pytest.mark.parametrize("channels", [False, True])
def test_float32_states_are_computed_in_float32(channels: bool) -> None:
    parents = walks.random_parents(32, 0, 4)
    x = inputs(32, channels, 0.5, 0)
    expected, exact = solve(x, walks.seen(parents))
    short = Inputs(*(part.to(torch.bfloat16) for part in vars(x).values()))
    short.state = x.state.float()
    outputs, solution = solve(short, walks.seen(parents))
    assert outputs.dtype == solution.updates.dtype == torch.float32
    float32 = Inputs(*(part.float() for part in vars(x).values()))
    outputs, solution = solve(float32, walks.seen(parents))
    assert (outputs - expected).abs().max() < 1e-5
    path = torch.tensor(walks.paths(parents)[-1])
    assert (solution.after(path) - exact.after(path)).abs().max() < 1e-5


FORK = [-1, 0, 0, 1, 2]


@pytest.mark.parametrize("channels", [False, True])
def test_siblings_that_see_each_other_are_noticed(channels: bool) -> None:
    x = inputs(len(FORK), channels, 1.0, 0)
    assert largest_error(x, FORK, walks.seen(FORK)) < 1e-12
    assert largest_error(x, FORK, np.tri(len(FORK), dtype=bool)) > 1e-2


@pytest.mark.parametrize("channels", [False, True])
def test_decay_by_slot_instead_of_path_is_noticed(
    channels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs(len(FORK), channels, 1.0, 0)

    def by_slot(state: torch.Tensor, *parts: torch.Tensor) -> Recurrence:
        decay = x.decay if channels else x.decay[..., None]
        return Recurrence(state, *parts[:-1], decay.cumsum(1).transpose(1, 2))

    monkeypatch.setattr(delta_rule, "Recurrence", by_slot)
    assert largest_error(x, FORK, walks.seen(FORK)) > 1e-2


@given(trees(64), st.integers(1, 6), st.integers(0, 4))
def test_windows_are_the_last_columns_of_each_path(
    parents: list[int], size: int, surplus: int
) -> None:
    kept = size - 1 + surplus
    found = tree_windows.windows(walks.seen(parents), kept, size)
    for node, path in enumerate(walks.paths(parents)):
        line = [*range(kept), *(kept + each for each in path)]
        assert found[node].tolist() == line[-size:]
        assert tree_windows.last_columns(path, kept, kept) == line[len(line) - kept :]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("near", [1, 3, 64])
def test_a_convolution_reads_the_ancestors(near: int, biased: bool) -> None:
    draw = torch.Generator().manual_seed(near)
    parents, size, channels = walks.random_parents(40, near, near), 4, 7
    columns = torch.randn(2, channels, size + 40, generator=draw, dtype=torch.float64)
    weight = torch.randn(channels, size, generator=draw, dtype=torch.float64)
    bias = torch.randn(channels, generator=draw, dtype=torch.float64) if biased else None
    read = torch.from_numpy(tree_windows.windows(walks.seen(parents), size, size))
    outputs = tree_windows.convolve(columns, weight, bias, read)
    by_slot = tree_windows.convolve(
        columns, weight, bias, torch.arange(40)[:, None] + torch.arange(1, size + 1)
    )
    assert near == 1 or (outputs - by_slot).abs().max() > 1e-2
    for node, path in enumerate(walks.paths(parents)):
        line = columns[:, :, [*range(size), *(size + each for each in path)]]
        expected = torch.nn.functional.conv1d(line, weight[:, None], bias, groups=channels)
        assert (outputs[..., node] - expected[..., -1]).abs().max() < 1e-12


def test_a_convolution_in_bfloat16_rounds_once() -> None:
    draw = torch.Generator().manual_seed(0)
    columns = torch.randn(1, 64, 12, generator=draw).bfloat16()
    weight = torch.randn(64, 4, generator=draw).bfloat16()
    read = torch.arange(8)[:, None] + torch.arange(1, 5)
    found = tree_windows.convolve(columns, weight, None, read)
    exact = tree_windows.convolve(columns.double(), weight.double(), None, read)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
