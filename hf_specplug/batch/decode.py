"""The decoding loop of a batch: each row drafts and accepts on its own, in one forward pass.

It takes the five steps of `hf_specplug.decode`. Each row is a request of its own, with its own
text, drafters, tree and accepted length. The rows share the engine, the budget, and what their
drafters learn. A row that has ended leaves the forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from hf_specplug.batch.steps import Steps
from hf_specplug.decode import observe, observe_prompt
from hf_specplug.drafters.contract import Context
from hf_specplug.drafting.budget import Budget, Decision
from hf_specplug.drafting.draft import RowDraft, draft_rows
from hf_specplug.drafting.drafter_sets import DrafterSet
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.telemetry.history import CheckedStep, History
from hf_specplug.telemetry.stats import Stats
from hf_specplug.tree import EMPTY, DraftTree
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.row_acceptance import RowVerifier, accept_rows
from hf_specplug.verify.row_engine import RowEngine


@dataclass(slots=True)
class Row:
    """One row in progress.

    Attributes:
        verifier: holds its sequence, padding on the left included, and picks its tokens.
        search: its drafters and their tree; each has begun this request.
        context: its text as the drafters see it, without padding on the left.
        history: its last trees.
        drafter_set: the set that its drafters belong to.
        root: its last accepted token.
    """

    verifier: RowVerifier
    search: TreeSearch
    context: Context
    history: History
    drafter_set: DrafterSet
    root: int = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """One call with several rows in progress.

    Attributes:
        engine: runs the target model on the rows that have not ended.
        rows: all rows of the call.
        budget: the budget for a number of rows.
        stats, lock: those of `Decoding`.
        steps: what is called for all rows of a step; None if nothing is.
    """

    engine: RowEngine
    rows: Sequence[Row]
    budget: Callable[[int], Budget]
    stats: Stats
    lock: AbstractContextManager[Any]
    steps: Steps | None = None


def decode_rows(call: Batch, input_ids: torch.Tensor) -> None:
    """Generate until every row has ended. The texts are then in the rows' verifiers.

    Args:
        input_ids: int64[N, n], the prompts.
    """
    engine, stats = call.engine, call.stats
    with stats.phase("prefill"):
        _prefill(call, input_ids)
    rows = _leave(call, call.rows)
    while rows:
        began, budget = time.perf_counter(), call.budget(len(rows))

        # 1. draft a tree for each row; 2. size: cut all to the width of the best expected goodput
        with stats.phase("draft"):
            trees, decision = _draft(call, rows, budget)

        # 3. verify: one forward pass over the last token and the tree of each row
        start = time.perf_counter() - engine.captured[1]  # excludes one-off capture time
        with stats.phase("verify"):
            outputs = engine.step_rows([row.root for row in rows], trees)
            for one in outputs:
                one.wait()

        # 4. accept: in each row the target's own tokens, as far as its tree contains them
        asked = any(decision.asked)
        with stats.phase("accept"):
            if asked and rows[0].search.needs("topk"):
                for one in outputs:
                    one.topk()  # drafters learn from it, and it finds all picks of a row at once
            steps = _accept(rows, outputs, trees)
            engine.keep_rows([step.visited for step in steps])

        # 5. observe: drafters learn from all outputs of the forward pass
        with stats.phase("observe"):
            for row, step, one in zip(rows, steps, outputs, strict=True):
                observe(row.search, row.context, step, one, asked, call.lock)
                row.history.append(step)
            stats.observe_rows(trees, [step.visited for step in steps], rows[0].history.names)
        seconds = time.perf_counter() - engine.captured[1] - start
        _learn_costs(budget, decision, rows, steps, seconds)
        stats.add_batch_seconds(time.perf_counter() - began, len(rows), len(call.rows))
        rows = _leave(call, rows)
    with call.lock:
        for row in call.rows:
            row.search.catch_up()


def _prefill(call: Batch, input_ids: torch.Tensor) -> None:
    """Run the prompts, show them to the drafters, and accept the first token of each row."""
    found = call.engine.prefill_rows(input_ids)
    steps = _accept(call.rows, found, [EMPTY] * len(found))
    for row, outputs, step in zip(call.rows, found, steps, strict=True):
        observe_prompt(row.search, row.context, outputs, step.emitted, call.lock)


def _draft(call: Batch, rows: Sequence[Row], budget: Budget) -> tuple[list[DraftTree], Decision]:
    """Draft the trees to verify; that of a row is empty if nothing may follow its last token."""
    room = call.engine.free_slots if call.steps is None or call.steps.drafts else 0
    drafts = [
        RowDraft(
            row.search,
            row.root,
            room=0 if row.root in row.context.suppressed else room,
            depth=row.verifier.remaining - 1,
            noise=row.verifier.noise,
        )
        for row in rows
    ]
    longest = max(len(row.context) for row in rows)
    return draft_rows(drafts, budget, longest, call.lock, call.engine.chains)


def _accept(
    rows: Sequence[Row], outputs: Sequence[Outputs], trees: Sequence[DraftTree]
) -> list[CheckedStep]:
    """Accept the part of each row's tree that the target agrees with."""
    paths = accept_rows([row.verifier for row in rows], outputs, trees)
    steps = []
    for row, tree, (visited, emitted) in zip(rows, trees, paths, strict=True):
        steps.append(CheckedStep(row.root, tree, visited, emitted))
        row.root = emitted[-1]
    return steps


def _learn_costs(
    budget: Budget,
    decision: Decision,
    rows: Sequence[Row],
    steps: Sequence[CheckedStep],
    seconds: float,
) -> None:
    """Show the budget what a forward pass cost, and what it brought."""
    accepted = sum(len(step.visited) - 1 for step in steps)
    width = max(len(step.tree) for step in steps) + 1
    longest = max(len(row.context) for row in rows)
    budget.observe(decision, accepted, longest, seconds, width)


def _leave(call: Batch, rows: Sequence[Row]) -> list[Row]:
    """The rows that have not ended; the others leave the engine."""
    if call.steps is not None:
        with call.stats.phase("accept"):
            if call.steps.follow():
                rows = _go_back(call)
    live = [index for index, row in enumerate(rows) if not row.verifier.finished]
    if 0 < len(live) < len(rows):
        call.engine.select(live)
    return [rows[index] for index in live]


def _go_back(call: Batch) -> Sequence[Row]:
    """Continue with all rows, each from the text in its verifier."""
    texts = [row.verifier.input_ids for row in call.rows]
    call.engine.restore()
    call.engine.cut([text.shape[1] - 1 for text in texts])
    for row, text in zip(call.rows, texts, strict=True):
        row.root = int(text[0, -1])
    return call.rows
