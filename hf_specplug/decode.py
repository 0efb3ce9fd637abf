"""The decoding loop: draft, size, verify, accept, observe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from hf_specplug.drafters.contract import Context, Step
from hf_specplug.drafting.budget import Budget, Decision
from hf_specplug.drafting.draft import draft
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.telemetry.history import CheckedStep, History
from hf_specplug.telemetry.stats import Stats
from hf_specplug.tree import EMPTY, DraftTree
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.outputs import Outputs

COUNTED_AT_ONCE = 64
"""Steps that the statistics count at a time: one by one, they would be counted with cold caches."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """One call in progress.

    Attributes:
        engine: runs the target model.
        verifier: holds the sequence and picks its tokens.
        search: the drafters and their shared tree; each has begun this request.
        context: the text as the drafters see it.
        budget: chooses the size of each draft.
        stats: the statistics of this call.
        history: the last trees of this call.
        chain: whether single paths are drafted, for models that cannot verify trees.
        lock: held while drafters propose and observe: concurrent calls share what they learn.
    """

    engine: Engine
    verifier: Verifier
    search: TreeSearch
    context: Context
    budget: Budget
    stats: Stats
    history: History
    chain: bool
    lock: AbstractContextManager[Any]


def decode(call: Decoding) -> None:
    """Generate until a stopping criterion is met. The text is then in `call.verifier`."""
    engine, verifier, search, stats = call.engine, call.verifier, call.search, call.stats
    with stats.phase("prefill"):
        emitted = _prefill(call)
    verifier.stream()
    deferred: Callable[[], None] = _nothing
    try:
        while not verifier.finished:
            root = emitted[-1]

            # 1. draft: one tree from all drafters; 2. size: cut it to the best expected goodput
            with stats.phase("draft"):
                decision = _draft(call, root)
            tree = decision.tree

            # 3. verify: one forward pass over the last token and the tree
            start = time.perf_counter() - engine.captured[1]  # excludes one-off capture time
            with stats.phase("verify"):
                outputs = engine.step(root, tree)
                deferred()  # while the device computes
                deferred = _nothing
                outputs.wait()

            # 4. accept: the target's own tokens, as far as the tree contains them
            with stats.phase("accept"):
                visited, emitted = _accept(call, outputs, tree)

            # 5. observe: drafters learn from all outputs of the forward pass
            step = CheckedStep(root, tree, visited, emitted)
            length = len(call.context)
            with stats.phase("observe"):
                patient = False if engine.overlaps else None
                asked = any(decision.asked)
                seen = observe(search, call.context, step, outputs, asked, call.lock, patient)
            seconds = time.perf_counter() - engine.captured[1] - start
            call.budget.observe(decision, len(visited) - 1, length, seconds)
            if engine.overlaps:
                deferred = partial(_finish, call, step, seen)
            else:
                _report(call, step)
    finally:
        deferred()
        _count(call)
        with call.lock:
            search.catch_up()


def _prefill(call: Decoding) -> list[int]:
    """Run the prompt, show it to the drafters, and return the first token in a list."""
    verifier, search, context = call.verifier, call.search, call.context
    outputs = call.engine.prefill(verifier.input_ids)
    _, emitted = verifier.accept(outputs, EMPTY)
    observe_prompt(search, context, outputs, emitted, call.lock)
    return emitted


def _draft(call: Decoding, root: int) -> Decision:
    """Draft the tree to verify after `root`; it is empty if nothing may be drafted."""
    engine, verifier = call.engine, call.verifier
    allowed = root not in call.context.suppressed
    return draft(
        call.search,
        call.budget,
        root,
        len(call.context),
        room=engine.free_slots if allowed else 0,
        depth=verifier.remaining - 1,
        chain=call.chain,
        replays=engine.replays,
        noise=verifier.noise,
        generator=verifier.generator,
        lock=call.lock,
    )


def _accept(call: Decoding, outputs: Outputs, tree: DraftTree) -> tuple[list[int], list[int]]:
    """Accept a part of a tree, and keep its cache slots; returns what `Verifier.accept` returns."""
    verifier = call.verifier
    try:
        visited, emitted = verifier.accept(outputs, tree, call.search.proposal)
    except BaseException:  # of a logits processor or a stopping criterion
        call.engine.keep(verifier.reached)
        raise
    call.engine.keep(visited)
    return visited, emitted


def observe_prompt(
    search: TreeSearch,
    context: Context,
    outputs: Outputs,
    emitted: Sequence[int],
    lock: AbstractContextManager[Any],
) -> None:
    """Extend a text by its first new token, and let drafters learn.

    Args:
        outputs: those at the prompt's last token.
        emitted: the new token.
        lock: held while drafters observe.
    """
    last = context.tokens[-1:].copy()
    context.append(emitted)
    topk = outputs.topk() if search.needs("topk") and len(last) else None
    hidden = outputs.hidden(0) if search.needs("hidden") else None
    before = len(context) - 1 - len(last)
    with lock:
        search.observe(Step.of_text(last, before, [], emitted, topk, hidden))


def observe(
    search: TreeSearch,
    context: Context,
    step: CheckedStep,
    outputs: Outputs,
    asked: bool,
    lock: AbstractContextManager[Any],
    patient: bool | None = None,
) -> Step | None:
    """Extend a text by the tokens of a step, and let mixer and drafters learn.

    Args:
        outputs: those of the step's forward pass.
        asked: whether a drafter was asked for the step's tree.
        lock: held while drafters observe.
        patient: which drafters learn; see `Experts.observe`.

    Returns:
        What they learn from; None if no drafter was asked. They then catch up before the next
        draft: where nothing can be guessed, a step should cost no more than a plain one.
    """
    if not asked and not search.needs("hidden"):
        context.append(step.emitted)
        search.postpone(len(step.emitted))
        return None
    topk = outputs.topk() if search.needs("topk") else None
    hidden = outputs.hidden(step.visited[-1]) if search.needs("hidden") else None
    before = len(context) - 1
    context.append(step.emitted)
    seen = Step.of_tree(step.root, step.tree, before, step.visited, step.emitted, topk, hidden)
    with lock:
        search.learn(seen.emitted)
        search.observe(seen, patient)
    return seen


def _finish(call: Decoding, step: CheckedStep, seen: Step | None) -> None:
    """Do the work that the next draft does not need: drafters that can wait learn."""
    if seen is not None:
        with call.lock:
            call.search.observe(seen, patient=True)
    _report(call, step)


def _report(call: Decoding, step: CheckedStep) -> None:
    """Stream a step, and note it for the statistics."""
    call.verifier.stream()
    call.history.append(step)
    _count(call, COUNTED_AT_ONCE)


def _count(call: Decoding, least: int = 1) -> None:
    """Count the steps that were noted, if they are not fewer than `least`."""
    for step in call.history.take(least):
        call.stats.observe(step.tree, step.visited, call.history.names)


def _nothing() -> None:
    pass
