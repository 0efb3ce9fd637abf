"""Mamba2's recurrence over trees, against walks over every path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hf_specplug.hf import selective_scan
from tests.helpers import walks
from tests.hf.test_delta_rule import FORK, trees

HEADS, GROUPS, DK, DV = 4, 2, 6, 5


def inputs(width: int, strength: float, seed: int) -> list[torch.Tensor]:
    """Values, step sizes, rates, keys, queries and a state; decays down to exp(-`strength`)."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    steps = torch.rand((1, width, HEADS), generator=draw, dtype=torch.float64)
    keys, queries = (normal(1, width, GROUPS, DK) for _ in range(2))
    rate = -strength * torch.rand(HEADS, generator=draw, dtype=torch.float64)
    return [normal(1, width, HEADS, DV), steps, rate, keys, queries, normal(1, HEADS, DK, DV)]


def walked(parts: list[Any], path: list[int], head: int) -> tuple[Any, Any]:
    """(the output [dv] at the end of a path, the state [dk, dv] after it) of one head."""
    values, steps, rate, keys, queries, states = (part.numpy() for part in parts)
    group, state = head * GROUPS // HEADS, states[0, head]
    for node in path:
        step = steps[0, node, head]
        added = np.outer(keys[0, node, group], step * values[0, node, head])
        state = np.exp(step * rate[head]) * state + added
    return queries[0, path[-1], group] @ state, state


def largest_error(parts: list[Any], parents: list[int], seen: NDArray[np.bool_]) -> float:
    outputs, recurrence = selective_scan.scan(*parts, torch.from_numpy(seen))
    errors = []
    for node, path in enumerate(walks.paths(parents)):
        states = recurrence.after(torch.tensor(path))[0].numpy()
        for head in range(HEADS):
            output, state = walked(parts, path, head)
            errors.append(np.abs(outputs[0, node, head].numpy() - output).max())
            errors.append(np.abs(states[head] - state).max())
    return float(max(errors))


@given(trees(), st.sampled_from([0.01, 1.0, 80.0, 2000.0]), st.integers(0, 2**32))
def test_a_tree_is_all_its_paths(parents: list[int], strength: float, seed: int) -> None:
    parts = inputs(len(parents), strength, seed)
    assert largest_error(parts, parents, walks.seen(parents)) < 1e-12


@pytest.mark.parametrize("near", [1, 2, 5, 64])
def test_64_nodes(near: int) -> None:
    parents = walks.random_parents(64, near, near)
    assert largest_error(inputs(64, 0.5, near), parents, walks.seen(parents)) < 1e-12


def test_siblings_that_see_each_other_are_noticed() -> None:
    parts = inputs(len(FORK), 1.0, 0)
    assert largest_error(parts, FORK, walks.seen(FORK)) < 1e-12
    assert largest_error(parts, FORK, np.tri(len(FORK), dtype=bool)) > 1e-2


def test_decay_by_slot_instead_of_path_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, real = inputs(len(FORK), 1.0, 0), selective_scan.Recurrence

    def by_slot(*fields: torch.Tensor) -> Any:
        decay = (parts[1] * parts[2]).cumsum(1).transpose(1, 2)[..., None]
        return real(*fields[:-1], decay)

    monkeypatch.setattr(selective_scan, "Recurrence", by_slot)
    assert largest_error(parts, FORK, walks.seen(FORK)) > 1e-2
