"""Runs one call with several rows, each with drafters of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import LogitsProcessorList, StoppingCriteriaList

from hf_specplug.batch.decode import Batch, Row, decode_rows
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.drafter_sets import DrafterSet
from hf_specplug.hf import adapter, batches
from hf_specplug.hf.adapter import BaseStreamer
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CallPlan
from hf_specplug.session import Session
from hf_specplug.telemetry.history import History
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.lockstep import LockstepNoise, RowVerifier, foreseen

if TYPE_CHECKING:
    from hf_specplug.runner import Runner


def obstacle(
    call: Call,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    streamer: BaseStreamer | None,
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
    return batches.lockstep(call.rows, processors, criteria, streamer is not None)


def run_rows(
    runner: Runner,
    call: Call,
    plan: CallPlan,
    session: Session,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
) -> Any:
    """Decode a call with several rows; returns what `generate` returns.

    Args:
        runner: lends drafters and counts.
        plan: as `session` planned the call: a tree, on the ragged engine.
        processors, criteria: as `generate` prepared them.
    """
    with _drafter_sets(runner) as acquire:
        ids, noise = call.input_ids, LockstepNoise(call.input_ids.device, call.rows)
        with runner.running(call, plan, session) as (engine, stats):
            rows, sets = [], []
            for index in range(call.rows):
                text = adapter.text_of_row(call, index)
                context = runner.context(text, call, session)
                # after the row before has begun: a drafter begins a vocabulary, then shares it
                drafter_set = acquire()
                if drafter_set is None:
                    return adapter.plain(call, processors, criteria, None)
                sets.append(drafter_set)
                search = runner.begin_search(
                    context, drafter_set.drafters, drafter_set.mixer, stats
                )
                own = ids[index : index + 1]
                each = batches.processors_of_row(processors, index)
                verifier = RowVerifier(index, noise, own, each, criteria, call.config)
                rows.append(Row(verifier, search, context, History(search.names)))
            runner.history = rows[0].history

            def budget(count: int) -> Budget:
                size = 1 << (count - 1).bit_length()  # of similar numbers of rows
                return session.budget(plan, len(sets[0].drafters), sets[0].number, size)

            decode_rows(Batch(engine, rows, budget, stats, runner.lock), ids)
    _record(runner, rows)
    return adapter.padded(call, [row.verifier.input_ids for row in rows])


@contextmanager
def _drafter_sets(runner: Runner) -> Iterator[Callable[[], DrafterSet | None]]:
    """Context manager that yields `runner.acquire`; on exit all acquired sets are released."""
    sets: list[DrafterSet] = []

    def acquire() -> DrafterSet | None:
        drafter_set = runner.acquire()
        if drafter_set is not None:
            sets.append(drafter_set)
        return drafter_set

    try:
        yield acquire
    finally:
        for drafter_set in sets:
            runner.release(drafter_set)


def _record(runner: Runner, rows: Sequence[Row]) -> None:
    """Append the answers to the store that records them, if any."""
    if runner.growing is not None:
        for row in rows:
            runner.growing.add(row.context.tokens[row.context.prompt_length :])
