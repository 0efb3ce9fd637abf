"""A trial: the logits of a tree or a chain, compared with those of plain decoding row by row.

It detects wrong positions, masks, caches and scales, whatever their cause. It does not detect wrong
windows that are longer than its text. Random generators, caches and the call's arguments are left
unchanged.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_specplug.exactness import row_trial
from hf_specplug.exactness.paths import Path, made_tree, paths_of
from hf_specplug.exactness.row_dependence import row_dependent
from hf_specplug.hf import suppressed
from hf_specplug.hf.cache import holds_state, rollback
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE, CallPlan
from hf_specplug.hf.prefill import Prompt, next_kwargs, prefilled
from hf_specplug.hf.states import KeptStates
from hf_specplug.hf.support import RECURRENT
from hf_specplug.tree import DraftTree
from hf_specplug.verify.eager import EagerEngine
from hf_specplug.verify.noise import generator_state
from hf_specplug.verify.recurrent import RecurrentEngine
from hf_specplug.verify.recurrent_tree import RecurrentTreeEngine

LENGTH = 12
"""The maximum number of tokens that a trial adds to a text."""

RANDOM = "the model draws random numbers in each forward pass"

_EXACT, _ROUNDED = 1e-3, 0.15
"""The largest differences that rounding explains, in standard deviations of a row of logits: for
float32 and float64, and for shorter formats."""


def run_trial(call: Call, plan: CallPlan) -> CallPlan:
    """Try a plan on a model.

    Args:
        call: as `generate` prepared it; not changed.
        plan: tree or chain.

    Returns:
        The plan if it is exact; otherwise chain if that is exact, else plain, with the reason.
    """
    model, input_ids, config = call.model, call.input_ids, call.config
    with _preserved_generators(input_ids.device) as drawn, torch.no_grad():
        try:
            kwargs = Prompt(input_ids, dict(call.kwargs), {}).copied().kwargs
            outputs, prompt = prefilled(model, input_ids, copy.copy(config), kwargs)
            if reason := _obstacle(prompt, drawn()):
                return plan.limited(PLAIN, reason)
            tokens = _likely_tokens(model, outputs.logits[0, -1])
        except Exception as error:
            return plan.limited(PLAIN, f"a trial failed: {_summary(error)}")
        reasons: list[str] = []
        modes = (TREE, CHAIN) if plan.mode == TREE else (CHAIN,)
        for mode in modes if call.rows == 1 else (plan.mode,):
            reason = _mismatch(call, mode, prompt, tokens)
            if not reason:
                return plan.limited(mode, "; ".join(reasons))
            reasons.append(reason)
    return plan.limited(PLAIN, reasons[-1])


@contextmanager
def _preserved_generators(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Context manager that restores the random generators on exit.

    Yields:
        A function that tells whether torch's generator has been used since entry.
    """
    numbers, choices = np.random.get_state(), random.getstate()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        before = generator_state(device)
        try:
            yield lambda: not torch.equal(before, generator_state(device))
        finally:
            np.random.set_state(numbers)
            random.setstate(choices)


def _obstacle(prompt: Prompt, drawn: bool) -> str:
    """Why nothing can be drafted after a prompt; "" if drafts are possible."""
    cache = prompt.kwargs.get("past_key_values")
    if drawn:
        return RANDOM
    mode, reason = (TREE, "") if cache is None else rollback(cache)
    if mode == PLAIN:
        return reason
    if cache is None or not int(cache.get_seq_length()):
        return "the model does not use the cache that generate gives it"
    return RECURRENT if holds_state(cache) and not KeptStates(cache).known else ""


def _mismatch(call: Call, mode: str, prompt: Prompt, tokens: Sequence[int]) -> str:
    """Why a mode is not exact; "" if it is."""
    model = call.model
    name = model.config.get_text_config(decoder=True).model_type
    drafted: dict[Any, torch.Tensor]
    expected: dict[Any, torch.Tensor]
    try:
        with row_dependent(model) as found:
            drafted = _drafted(call, mode, prompt, tokens)
        if found:
            return f"{found[0]} computes a token differently beside others"
        if call.rows > 1:
            paths = sorted({path for _, path in drafted})
            expected = row_trial.expected_logits(model, prompt, paths)
        else:
            expected = _expected_logits(model, prompt, sorted(drafted))
    except Exception as error:
        return f"a {mode} of {name} failed in a trial: {_summary(error)}"
    errors = [_deviation(drafted[row], expected[row]) for row in drafted]
    exact = model.dtype in (torch.float32, torch.float64)
    # in short formats a router of experts may choose differently although nothing is wrong
    worst, limit = (max(errors), _EXACT) if exact else (float(np.median(errors)), _ROUNDED)
    if worst <= limit:
        return ""
    return f"a trial of {name} found a {mode}'s logits off by {worst:.2g} deviations"


def _drafted(
    call: Call, mode: str, prompt: Prompt, tokens: Sequence[int]
) -> dict[Any, torch.Tensor]:
    """The logits of a trial's forward passes, by path or, in a batch, by row and path."""
    if call.rows > 1:
        return row_trial.drafted_logits(call, mode, prompt, tokens)
    kind: type[EagerEngine] = EagerEngine
    if holds_state(prompt.kwargs["past_key_values"]):
        kind = RecurrentTreeEngine if mode == TREE else RecurrentEngine
    engine = kind(replace(call, kwargs={}), CallPlan(mode))
    try:
        engine.resume(prompt.copied())
        return _drafted_logits(engine, mode, tokens)
    finally:
        engine.close()


def _drafted_logits(engine: EagerEngine, mode: str, t: Sequence[int]) -> dict[Path, torch.Tensor]:
    """The logits of the forward passes over one or two drafts, by row.

    Between the passes over a tree, the cache keeps a path that is not the first one. A chain is
    accepted in part, then wholly; a third pass shows what the cache holds after that.
    """
    path: Path
    if mode == TREE:
        #     t0 ── t1 ── t3 ── t5
        #      │     └─── t2
        #      └─── t2 ── t4 ── t1      kept: t0 t2 t4, then t3 with t5 and t6
        parents, values, kept = [-1, -1, 0, 0, 1, 2, 4], [1, 2, 3, 2, 4, 5, 1], [0, 2, 5]
        second, path = made_tree([-1, -1], [t[5], t[6]]), (t[0], t[2], t[4])
    else:
        parents, values, kept = [-1, 0, 1], [1, 2, 3], [0, 1]
        second, path = made_tree([-1], [t[5]]), (t[0], t[1])
    rows: dict[Path, torch.Tensor] = {}
    first = made_tree(parents, [t[value] for value in values])
    _record(rows, (), t[0], first, engine.step(t[0], first).logits)
    engine.keep(kept)
    _record(rows, path, t[3], second, engine.step(t[3], second).logits)
    if isinstance(engine, RecurrentTreeEngine):  # branches deeper than a convolution is wide
        engine.keep([0, 2])
        third = made_tree([-1, 0, 1, 2, 1, 4, 5], [t[value] for value in (2, 4, 5, 0, 6, 3, 1)])
        _record(rows, (*path, t[3], t[6]), t[1], third, engine.step(t[1], third).logits)
    if mode == CHAIN:
        engine.keep([0, 1])
        third = made_tree([-1], [t[1]])
        _record(rows, (*path, t[3], t[5]), t[6], third, engine.step(t[6], third).logits)
    return rows


def _record(
    rows: dict[Path, torch.Tensor], text: Path, root: int, tree: DraftTree, logits: torch.Tensor
) -> None:
    """Add the logits [N + 1, vocab] of a tree after `text` and `root` to `rows`."""
    if len(logits) != len(tree) + 1:
        raise ValueError(f"the model gives {len(logits)} rows for {len(tree) + 1} tokens")
    rows.update(zip(paths_of(text, root, tree), logits.float(), strict=True))


def _expected_logits(
    model: PreTrainedModel, prompt: Prompt, rows: Sequence[Path]
) -> dict[Path, torch.Tensor]:
    """The logits of plain decoding at `rows`, in lexical order: each row after its parent."""
    found: dict[Path, torch.Tensor] = {}

    def visit(row: Path, before: Prompt) -> None:
        ids = torch.cat([before.input_ids, before.input_ids.new_tensor([row[-1:]])], dim=1)
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **before.kwargs)
        outputs = model(**inputs, return_dict=True)
        kwargs = next_kwargs(model, outputs, before.kwargs)
        after = Prompt(ids, kwargs, before.per_token)
        found[row] = outputs.logits[0, -1].float()
        for child in rows:
            if child[:-1] == row:
                visit(child, after.copied())

    visit(rows[0], prompt.copied())
    return found


def _likely_tokens(model: PreTrainedModel, logits: torch.Tensor) -> list[int]:
    """Seven of the most likely next tokens, repeated if there are fewer."""
    excluded = suppressed.tokens(model)
    best = logits.float().nan_to_num().topk(min(len(logits), 7 + len(excluded))).indices.tolist()
    tokens = [token for token in best if token not in excluded]
    return [tokens[place % len(tokens)] for place in range(7)]


def _deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in standard deviations of `expected`.

    Infinite if the two have finite values in different places, or none at all.
    """
    known = torch.isfinite(expected)
    if not known.any() or not torch.equal(known, torch.isfinite(found)):
        return float("inf")
    spread = expected[known].std().clamp_min(1e-9)
    return float((found[known] - expected[known]).abs().max() / spread)


def _summary(error: Exception) -> str:
    """The type and message of an error, in one line of at most 200 characters."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
