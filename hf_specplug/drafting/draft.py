"""One draft: ask the drafters, grow the tree, cut it to the size that pays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from hf_specplug.drafters.contract import NO_NOISE, Noise
from hf_specplug.drafting.budget import Budget, Decision
from hf_specplug.drafting.search import TreeSearch


def no_noise() -> Noise:
    """Nothing is known of the next picks."""
    return NO_NOISE


def draft(
    search: TreeSearch,
    budget: Budget,
    root: int,
    context: int,
    room: int,
    depth: int,
    *,
    chain: bool = False,
    noise: Callable[[], Noise] = no_noise,
    generator: np.random.Generator | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> Decision:
    """Draft one tree, of the size that `budget` chooses.

    Args:
        root: the last accepted token.
        context: tokens of the text so far, the root included.
        room: maximum number of drafted tokens that the engine has slots for; 0 for no draft.
        depth: maximum number of tokens ahead.
        chain: draft a single path, for models that cannot verify a tree.
        noise: called for the known sampling noise of the next picks, if a tree is grown.
        generator: if given, children are drawn at random, and the tree is not cut, as rejection
            sampling must see all that was drawn.
        lock: held while drafters are asked.
    """
    asked = budget.ask()
    limit = min(budget.limit, room) if any(asked) else 0
    known = noise() if limit > 0 and depth > 0 else NO_NOISE
    with lock or nullcontext():
        tree = search.grow(
            root, limit, depth, chain=chain, ask=asked, noise=known, generator=generator
        )
    decision = budget.fit(tree, context, asked if limit > 0 else (), search.seconds)
    return decision if generator is None else replace(decision, tree=tree)
