"""One draft: ask the drafters, grow the trees, and cut them to the size of highest goodput."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_specplug.drafters.contract import NO_NOISE, Noise
from hf_specplug.drafting.budget import Budget, Decision
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.tree import DraftTree


def no_noise() -> Noise:
    """Return `NO_NOISE`: the sampling noise of the next picks is unknown."""
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
    replays: int | None = None,
    noise: Callable[[], Noise] = no_noise,
    generator: np.random.Generator | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> Decision:
    """Draft one tree, of the size that `budget` chooses.

    Args:
        search: grows the tree from the candidates of its drafters.
        budget: chooses which drafters to ask, and the size of the tree.
        root: the last accepted token.
        context: number of tokens of the text so far, including the root.
        room: maximum number of drafted tokens, those for which the engine has slots; 0: no draft.
        depth: maximum depth of the tree, in tokens.
        chain: draft a single path, for models that cannot verify a tree.
        replays: number of accepted tokens that the forward pass runs again; None if rejected tokens
            cost no replay.
        noise: called for the known sampling noise of the next picks if a tree is grown.
        generator: if given, children are drawn at random. The tree is then not cut, because
            rejection sampling must see all drawn tokens.
        lock: held while the drafters are asked.

    Returns:
        The decision of `budget`, which holds the tree to verify.
    """
    asked = budget.ask()
    limit = min(budget.limit - (replays or 0), room) if any(asked) else 0
    known = noise() if limit > 0 and depth > 0 else NO_NOISE
    with lock or nullcontext():
        tree = search.grow(
            root, limit, depth, chain=chain, ask=asked, noise=known, generator=generator
        )
    decision = budget.fit(tree, context, asked if limit > 0 else (), search.seconds, replays)
    return decision if generator is None else replace(decision, tree=tree)


@dataclass(frozen=True, slots=True)
class RowDraft:
    """What one row of a batch is drafted from.

    Attributes:
        search, root, room, depth, noise: those of `draft`.
    """

    search: TreeSearch
    root: int
    room: int
    depth: int
    noise: Callable[[], Noise] = no_noise


def draft_rows(
    rows: Sequence[RowDraft],
    budget: Budget,
    context: int,
    lock: AbstractContextManager[Any],
    chain: bool = False,
) -> tuple[list[DraftTree], Decision]:
    """Draft one tree per row of a batch, of the width that `budget` chooses for all rows.

    Args:
        rows: what each row is drafted from.
        budget: chooses which drafters to ask, and the width.
        context: number of tokens of the longest row so far.
        lock: held while the drafters of a row are asked.
        chain: draft a single path per row, for models that cannot verify a tree.

    Returns:
        (the trees to verify, the decision of `budget`)
    """
    asked = budget.ask()
    limit = budget.limit if any(asked) else 0
    trees: list[DraftTree] = []
    spent = np.zeros(len(asked))
    for row in rows:
        size = min(limit, row.room)
        known = row.noise() if size > 0 and row.depth > 0 else NO_NOISE
        with lock:
            tree = row.search.grow(row.root, size, row.depth, chain=chain, ask=asked, noise=known)
            trees.append(tree)
        spent += row.search.seconds
    return budget.fit_rows(trees, context, asked if limit > 0 else (), spent.tolist())
