"""The decoding loop: draft, size, verify, accept, observe."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from hf_specplug.drafters.contract import Context, Float32, Step
from hf_specplug.drafting.budget import Budget
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.telemetry.history import CheckedStep, History
from hf_specplug.telemetry.stats import Stats
from hf_specplug.tree import EMPTY
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.engine import PREFILL_LOGITS, Engine
from hf_specplug.verify.outputs import Outputs


def decode(
    engine: Engine,
    verifier: Verifier,
    search: TreeSearch,
    context: Context,
    budget: Budget,
    stats: Stats,
    history: History,
    chain: bool,
    lock: AbstractContextManager[Any],
) -> None:
    """Generate until a stopping criterion is met; the text is then in `verifier`.

    Args:
        engine: runs the target.
        verifier: the sequence and its rules.
        search: the drafters and their shared tree; each has begun this request.
        context: the text as the drafters see it.
        budget: how large a draft may be.
        stats: counts what happens.
        history: keeps the last trees.
        chain: draft single paths, for models that cannot check trees.
        lock: held while drafters are asked and told: calls at the same time share what they learn.
    """
    with stats.phase("prefill"):
        emitted = _prefill(engine, verifier, search, context, lock)
    verifier.stream()
    late: Callable[[], None] = _nothing
    try:
        while not verifier.finished:
            with stats.phase("draft"):
                # 1. draft: one tree from all drafters
                tree, asked = EMPTY, budget.ask()
                if engine.drafts and any(asked) and emitted[-1] not in context.suppressed:
                    limit = min(budget.limit, engine.room)
                    verifier.guide(search)
                    with lock:
                        tree = search.grow(emitted[-1], limit, verifier.room - 1, chain, asked)
                # 2. size: as much of it as pays
                fitting = budget.fit(tree, len(context))
                tree = tree if verifier.keeps_drafts else fitting

            # 3. verify: one forward pass over the last token and the tree
            start = time.perf_counter() - engine.prepared[1]  # once is no time for a budget
            with stats.phase("verify"):
                root = emitted[-1]
                outputs = engine.step(root, tree)
                late()  # while a device computes
                outputs.wait()

            # 4. accept: what the target says, as far as the tree foresaw it
            with stats.phase("accept"):
                visited, emitted = verifier.accept(outputs, tree)
                engine.keep(visited)
            seconds = time.perf_counter() - engine.prepared[1] - start
            budget.observe(tree, len(visited) - 1, len(context), seconds, asked, search.seconds)

            # 5. observe: drafters learn from all that was seen
            with stats.phase("observe"):
                topk = outputs.topk() if _needed(search, "topk") else None
                hidden = _hidden(search, engine, outputs, visited[-1])
                before = len(context) - 1
                context.append(emitted)
                step = Step.of_tree(root, tree, before, visited, emitted, topk, hidden)
                with lock:
                    search.learn(step.emitted)
                    observe(search, step)
                late = partial(
                    _report, verifier, stats, history, CheckedStep(root, tree, visited, emitted)
                )
                if not engine.overlaps:
                    late()
                    late = _nothing
    finally:
        late()


def _prefill(
    engine: Engine,
    verifier: Verifier,
    search: TreeSearch,
    context: Context,
    lock: AbstractContextManager[Any],
) -> list[int]:
    """Run the prompt, show it to the drafters, and return the first token."""
    wanted = 1
    if _needed(search, "topk"):
        wanted = max(1, _prompt_rows(verifier, context))
    outputs = engine.prefill(verifier.input_ids, wanted)
    logits = outputs.logits
    prompt = context.tokens[len(context) - min(len(context), len(logits)) :].copy()
    _, emitted = verifier.accept(Outputs(logits[-1:]), EMPTY)
    context.append(emitted)
    topk = None
    if _needed(search, "topk") and len(prompt):
        topk = Outputs(logits[-len(prompt) :]).topk()
    before = len(context) - len(emitted) - len(prompt)
    hidden = _hidden(search, engine, outputs, -1)
    with lock:
        observe(search, Step.of_text(prompt, before, [], emitted, topk, hidden))
    return emitted


def _hidden(search: TreeSearch, engine: Engine, outputs: Outputs, node: int) -> Float32 | None:
    """The state at a node, if a drafter wants it and it was seen."""
    if not _needed(search, "hidden"):
        return None
    state = outputs.hidden(node)
    if state is None and not engine.degraded_reason:
        engine.degraded_reason = (
            "the model's hidden states are not seen: nothing is drafted by them"
        )
    return state


def _report(verifier: Verifier, stats: Stats, history: History, step: CheckedStep) -> None:
    """What nobody waits for before the next forward pass can start."""
    verifier.stream()
    stats.observe(step.tree, step.visited, history.names)
    history.append(step)


def _nothing() -> None:
    pass


def begin(search: TreeSearch, context: Context) -> None:
    """Begin a request with every drafter; one that fails is dropped."""
    for drafter in search.drafters:
        try:
            drafter.begin(context)
        except Exception as error:
            search.drop(drafter, error)


def observe(search: TreeSearch, step: Step) -> None:
    """Show a step to every drafter; one that fails is dropped."""
    for drafter in search.drafters:
        try:
            drafter.observe(step)
        except Exception as error:
            search.drop(drafter, error)


def _prompt_rows(verifier: Verifier, context: Context) -> int:
    """Prompt tokens whose outputs are worth having: as many as are to be generated, if they fit.

    What stands for an image teaches nothing, and there may be a great deal of it.
    """
    text = min(verifier.input_ids.shape[1], context.unbroken)
    return min(text, PREFILL_LOGITS // context.vocab_size, verifier.room)


def _needed(search: TreeSearch, output: str) -> bool:
    return any(output in drafter.needs for drafter in search.drafters)
