"""Goodput, the expected tokens per time, by the width of a forward pass."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

import numpy as np


def outlook(
    widths: Sequence[int],
    costs: Sequence[float],
    gains: Sequence[float],
    trust: float,
    replays: int | None = None,
) -> tuple[list[int], list[float], list[float]]:
    """The widths that a forward pass may have, the plain one first, and what is expected of them.

    Args:
        widths: tokens per forward pass; ascending, 1 first.
        costs: the cost of each width, in plain forward passes.
        gains: gains[k - 1] is the expected number of accepted tokens of k drafted tokens.
        trust: factor by which these expectations were right so far.
        replays: number of accepted tokens that the forward pass runs again before its root. Unless
            all drafted tokens are accepted, the next one runs these, the root and the accepted
            ones again. None: rejected tokens cost no replay.

    Returns:
        (numbers of drafted tokens; expected tokens; expected costs)

    Example:
        >>> outlook([1, 2, 4], [1.0, 1.1, 1.3], [0.9, 1.7], trust=1.0)
        ([0, 1], [1.0, 1.9], [1.0, 1.1])
    """
    again = replays or 0
    drafted, tokens = [0], [1.0]
    spent = [_cost(widths, costs, 1 + again) if again else 1.0]
    for place in range(bisect(widths, 1 + again), len(widths)):
        count = widths[place] - 1 - again
        if count > len(gains):
            break
        drafted.append(count)
        accepted = trust * gains[count - 1]
        tokens.append(1.0 + accepted)
        cost = costs[place]
        if replays is not None:
            last = gains[count - 1] - (gains[count - 2] if count > 1 else 0.0)
            whole = min(trust * last, 1.0)  # the probability that all are accepted
            later = (1.0 - whole) * (again + 1) + max(accepted - whole * count, 0.0)
            cost += _cost(widths, costs, 1 + later) - 1.0
        spent.append(cost)
    return drafted, tokens, spent


def after_rejection(
    widths: Sequence[int],
    costs: Sequence[float],
    gains: Sequence[float],
    trust: float,
    replays: int,
) -> tuple[int, float]:
    """How many tokens to draft in a forward pass that runs accepted ones again.

    What these cost is due in any case. A draft has to earn what it adds at the rate of a forward
    pass without them: else a pass without a draft comes first, after which nothing runs again.

    Returns:
        (number of drafted tokens, plain forward passes that they save)
    """
    _, tokens, spent = outlook(widths, costs, gains, trust, 0)
    rate = max(count / cost for count, cost in zip(tokens, spent, strict=True))
    drafted, tokens, spent = outlook(widths, costs, gains, trust, replays)
    worth = [count / rate - cost for count, cost in zip(tokens, spent, strict=True)]
    best = max(range(len(worth)), key=worth.__getitem__)
    return drafted[best], worth[best] - worth[0]


def _cost(widths: Sequence[int], costs: Sequence[float], width: float) -> float:
    """The cost of any width, between those of its neighbours."""
    return float(np.interp(width, widths, costs))
