"""Runs one call with several rows, each with drafters of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from hf_specplug.batch.complete import complete
from hf_specplug.batch.decode import Batch, Row, decode_rows
from hf_specplug.batch.steps import Steps
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.drafter_sets import DrafterSet
from hf_specplug.hf import adapter, batches
from hf_specplug.hf.adapter import BaseStreamer
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CallPlan
from hf_specplug.session import Session
from hf_specplug.telemetry.history import History
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.lockstep import LockstepNoise, foreseen
from hf_specplug.verify.row_acceptance import RowVerifier

if TYPE_CHECKING:
    from hf_specplug.runner import Runner


def obstacle(
    call: Call,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    verifier: type[Verifier],
) -> str:
    """Why the rows of a call must advance together, as in plain `generate`; "" if they need not.

    Args:
        verifier: the class with which a single row would be verified.
    """
    if call.rows == 1:
        return ""
    if call.config.do_sample:
        if verifier is not Verifier:
            return 'verification="rejection" of a batch is not drafted yet'
        device, width = call.input_ids.device, adapter.vocab_size(call.model)
        if not foreseen(device, width):
            return f"the random numbers of a batch are not known in advance on {device.type}"
    return batches.lockstep(call.rows, processors, criteria, call.config)


def run_rows(
    runner: Runner,
    call: Call,
    plan: CallPlan,
    session: Session,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    inputs: torch.Tensor | None,
    streamer: BaseStreamer | None,
) -> Any:
    """Decode a call with several rows; returns what `generate` returns.

    Args:
        runner: lends drafters and counts.
        plan: as `session` planned the call: a tree, on the ragged engine.
        processors, criteria: as `generate` prepared them.
        inputs: the model's own inputs, if they are not `input_ids`.
        streamer: receives the tokens of each step; None if there is no streamer.
    """
    with (
        _drafter_sets(runner, call.rows) as sets,
        runner.running(call, plan, session) as (engine, stats),
    ):
        noise = LockstepNoise(call.input_ids.device, call.rows)
        of_a_row = batches.criteria_of_row(criteria)
        rows: list[Row] = []
        for index, drafter_set in enumerate(sets):
            context = runner.context(adapter.text_of_row(call, index, inputs), call, session)
            search = runner.begin_search(context, drafter_set.drafters, drafter_set.mixer, stats)
            each = batches.processors_of_row(processors, index)
            own = call.input_ids[index : index + 1]
            verifier = RowVerifier(index, noise, own, each, of_a_row, call.config)
            rows.append(Row(verifier, search, context, History(search.names), drafter_set))
        if len(rows) < call.rows:
            stats.reset()
        else:
            runner.history = rows[0].history
            first = rows[0].drafter_set

            def budget(count: int) -> Budget:
                size = 1 << (count - 1).bit_length()  # of similar numbers of rows
                return session.budget(plan, len(first.drafters), first.number, size)

            verifiers = [row.verifier for row in rows]
            steps = None
            if streamer is not None or len(of_a_row) < len(criteria):
                steps = Steps(call, verifiers, noise, criteria, streamer)
                engine.parks = True  # rows that ran ahead may have to go back
            decode_rows(Batch(engine, rows, budget, stats, runner.lock, steps), call.input_ids)
            if engine.outlives:
                with stats.phase("verify"):
                    complete(engine, verifiers, adapter.pad_token(call))
    if len(rows) < call.rows:
        return adapter.plain(call, processors, criteria, streamer)
    _record(runner, verifiers)
    if streamer is not None:
        streamer.end()
    return _result(call, verifiers, engine.cache, steps)


def _result(call: Call, rows: Sequence[Verifier], cache: Any, steps: Steps | None) -> Any:
    """What `generate` returns, from the finished rows."""
    scores, logits = (_steps([getattr(row, name) for row in rows]) for name in ("scores", "logits"))
    if steps is None:
        sequences = adapter.padded(call, [row.input_ids for row in rows])
    else:
        sequences = steps.ids
    return adapter.result(call, sequences, scores, logits, cache)


def _steps(rows: Sequence[tuple[torch.Tensor, ...] | None]) -> tuple[torch.Tensor, ...] | None:
    """[N, V] per step, from [1, V] per step of each row; None if they are not returned."""
    known = [row for row in rows if row is not None]
    return tuple(torch.cat(step) for step in zip(*known, strict=True)) if known else None


@contextmanager
def _drafter_sets(runner: Runner, count: int) -> Iterator[Iterator[DrafterSet]]:
    """Context manager that acquires a set of drafters per row; fewer if one cannot be copied.

    Yields:
        The sets. Each is acquired when it is asked for, after the row before has begun: copies then
        share the tables of the vocabulary in use.
    """
    taken: list[DrafterSet] = []

    def sets() -> Iterator[DrafterSet]:
        while len(taken) < count and (drafter_set := runner.acquire()) is not None:
            taken.append(drafter_set)
            yield drafter_set

    try:
        yield sets()
    finally:
        for drafter_set in taken:
            runner.release(drafter_set)


def _record(runner: Runner, rows: Sequence[RowVerifier]) -> None:
    """Append the answers to the store that records them, if any."""
    if runner.growing is not None:
        for row in rows:
            runner.growing.add(np.array(row.said))
