"""From how many tokens on packed weights are faster, tried on the layers of a model.

It depends on the machine, the dtype and the shape of a layer: in float32, some machines multiply
a few rows faster with plain weights, and 16 rows in half the time with packed ones.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

ROWS = (1, 4, 8, 16)
"""Numbers of tokens per forward pass that are tried."""

WORTHWHILE = 0.9
"""The most that a packed layer may take of the plain layer's time to be used."""

_LAYERS = 2  # of each kind, so that one layer's weights do not stay in the fastest cache
_RUNS = 4

Kind = tuple[torch.Size, torch.dtype]


def kind_of(weight: torch.Tensor) -> Kind:
    """What decides how fast a layer is: its shape and dtype."""
    return weight.shape, weight.dtype


def rows_to_pack_for(layers: Iterable[nn.Linear]) -> dict[Kind, int]:
    """From how many rows on packed layers are faster, by kind; kinds that never are do not occur.

    Empty if torch lacks the operations, or if they do not give close results.
    """
    kinds = defaultdict(list)
    for layer in layers:
        kinds[kind_of(layer.weight)].append(layer.weight.detach())
    try:
        with torch.inference_mode():
            tried = {kind: _first_rows(weights[:_LAYERS]) for kind, weights in kinds.items()}
    except (AttributeError, RuntimeError, NotImplementedError):  # torch lacks these operations
        return {}
    return {kind: rows for kind, rows in tried.items() if rows is not None}


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The weight of a linear layer in oneDNN's layout for a few tokens."""
    with torch.inference_mode():
        tokens = 8  # the layout is the same from 1 to 64
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), tokens)
    return packed


def packed_linear(
    input: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Compute what `torch.nn.functional.linear` computes, from a packed weight."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
    return product


def _first_rows(weights: list[torch.Tensor]) -> int | None:
    """The smallest number of `ROWS` from which packed weights are faster; None if there is none."""
    packed = [pack(weight) for weight in weights]
    first = None
    for rows in reversed(ROWS):
        x = torch.ones(rows, weights[0].shape[1], dtype=weights[0].dtype)
        expected, actual = nn.functional.linear(x, weights[0]), packed_linear(x, packed[0], None)
        if not torch.allclose(expected.float(), actual.float(), rtol=1e-2, atol=1e-2):
            return None
        plain_time, packed_time = best_times(
            [partial(nn.functional.linear, x, weight) for weight in weights],
            [partial(packed_linear, x, weight, None) for weight in packed],
        )
        if packed_time > WORTHWHILE * plain_time:
            break
        first = rows
    return first


Calls = list[Callable[[], torch.Tensor]]


def best_times(plain: Calls, packed: Calls) -> tuple[float, float]:
    """Seconds of all `plain` and all `packed` calls, in turn, so that a load slows down both."""
    best = [float("inf")] * 2
    for _ in range(_RUNS):
        for side, calls in enumerate((plain, packed)):
            start = time.perf_counter()
            for call in calls:
                call()
            best[side] = min(best[side], time.perf_counter() - start)
    return best[0], best[1]
