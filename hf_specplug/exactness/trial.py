"""A trial: the rows of a tree or a chain, beside the rows of plain decoding, one by one.

It sees wrong positions, masks, caches and scales, whatever they come from; not windows that are
longer than it. It leaves random generators, caches and the call's arguments as they were.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_specplug.exactness.row_dependence import row_dependent
from hf_specplug.hf import suppressed
from hf_specplug.hf.cache import holds_state
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE, CallPlan
from hf_specplug.hf.prefill import Prompt, next_kwargs, prefilled
from hf_specplug.hf.support import RECURRENT
from hf_specplug.tree import DraftTree
from hf_specplug.verify.eager import EagerEngine
from hf_specplug.verify.noise import generator_state

LENGTH = 8
"""Tokens that a trial adds to a text at most."""

RANDOM = "the model draws random numbers in each forward pass"

_EXACT, _ROUNDED = 1e-3, 0.15
"""Differences in standard deviations of a row of logits that rounding explains: of float32 and
float64, and of anything shorter."""

Row = tuple[int, ...]  # the tokens after the prompt, up to and including the one whose row it is


def run_trial(call: Call, plan: CallPlan) -> CallPlan:
    """The plan if it is exact; else a chain if that is, else plain, with what was found.

    Args:
        call: as `generate` prepared it; left as it is.
        plan: tree or chain.
    """
    model, input_ids, config = call.model, call.input_ids, call.config
    with _generators(input_ids.device) as drawn, torch.no_grad():
        try:
            kwargs = Prompt(input_ids, dict(call.kwargs), {}).copied().kwargs
            outputs, prompt = prefilled(model, input_ids, copy.copy(config), kwargs)
            if reason := _unfit(prompt, drawn()):
                return plan.limited(PLAIN, reason)
            tokens = _likely(model, outputs.logits[0, -1])
        except Exception as problem:
            return plan.limited(PLAIN, f"a trial failed: {_said(problem)}")
        reasons: list[str] = []
        for mode in (TREE, CHAIN) if plan.mode == TREE else (CHAIN,):
            reason = _reason(call, mode, prompt, tokens)
            if not reason:
                return plan.limited(mode, "; ".join(reasons))
            reasons.append(reason)
    return plan.limited(PLAIN, reasons[-1])


@contextmanager
def _generators(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Puts random generators back; yields whether a number was drawn from torch's since then."""
    numbers, choices = np.random.get_state(), random.getstate()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        before = generator_state(device)
        try:
            yield lambda: not torch.equal(before, generator_state(device))
        finally:
            np.random.set_state(numbers)
            random.setstate(choices)


def _unfit(prompt: Prompt, drawn: bool) -> str:
    """Why nothing can be drafted after a prompt; "" if something may be."""
    cache = prompt.kwargs.get("past_key_values")
    if drawn:
        return RANDOM
    if cache is None or (not holds_state(cache) and not int(cache.get_seq_length())):
        return "the model does not use the cache that generate gives it"
    return RECURRENT if holds_state(cache) else ""


def _reason(call: Call, mode: str, prompt: Prompt, tokens: Sequence[int]) -> str:
    """Why a mode is not exact; "" if it is."""
    model = call.model
    name = model.config.get_text_config(decoder=True).model_type
    engine = EagerEngine(replace(call, kwargs={}), CallPlan(mode))
    try:
        with row_dependent(model) as found:
            engine.resume(prompt.copied())
            drafted = _drafted(engine, mode, tokens)
        if found:
            return f"{found[0]} computes a token differently beside others"
        expected = _expected(model, prompt, sorted(drafted))
    except Exception as problem:
        return f"a {mode} of {name} failed in a trial: {_said(problem)}"
    finally:
        engine.close()
    errors = [_error(drafted[row], expected[row]) for row in drafted]
    exact = model.dtype in (torch.float32, torch.float64)
    # in short formats a router of experts may turn over where nothing is wrong
    worst, limit = (max(errors), _EXACT) if exact else (float(np.median(errors)), _ROUNDED)
    if worst <= limit:
        return ""
    return f"a trial of {name} found a {mode}'s logits off by {worst:.2g} deviations"


def _drafted(engine: EagerEngine, mode: str, t: Sequence[int]) -> dict[Row, torch.Tensor]:
    """Rows of two passes; between them the cache keeps a path that is not the first."""
    path: Row
    if mode == TREE:
        #     t0 ── t1 ── t3 ── t5
        #      │     └─── t2
        #      └─── t2 ── t4 ── t1      kept: t0 t2 t4, then t3 with t5 and t6
        parents, values, kept = [-1, -1, 0, 0, 1, 2, 4], [1, 2, 3, 2, 4, 5, 1], [0, 2, 5]
        second, path = _tree([-1, -1], [t[5], t[6]]), (t[0], t[2], t[4])
    else:
        parents, values, kept = [-1, 0, 1], [1, 2, 3], [0, 1]
        second, path = _tree([-1], [t[5]]), (t[0], t[1])
    rows: dict[Row, torch.Tensor] = {}
    first = _tree(parents, [t[value] for value in values])
    _record(rows, (), t[0], first, engine.step(t[0], first).logits)
    engine.keep(kept)
    _record(rows, path, t[3], second, engine.step(t[3], second).logits)
    return rows


def _tree(parents: Sequence[int], tokens: Sequence[int]) -> DraftTree:
    count = len(tokens)
    ones, nobody = np.ones(count, np.float32), np.zeros(count, np.uint16)
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), ones, nobody)


def _record(
    rows: dict[Row, torch.Tensor], text: Row, root: int, tree: DraftTree, logits: torch.Tensor
) -> None:
    if len(logits) != len(tree) + 1:
        raise ValueError(f"the model gives {len(logits)} rows for {len(tree) + 1} tokens")
    places = [(*text, root)]
    for parent, token in zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True):
        places.append((*places[parent + 1], token))
    rows.update(zip(places, logits.float(), strict=True))


def _expected(
    model: PreTrainedModel, prompt: Prompt, rows: Sequence[Row]
) -> dict[Row, torch.Tensor]:
    """What plain decoding finds at rows, given in lexical order: each after the one it goes on."""
    found: dict[Row, torch.Tensor] = {}

    def go(row: Row, before: Prompt) -> None:
        ids = torch.cat([before.input_ids, before.input_ids.new_tensor([row[-1:]])], dim=1)
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **before.kwargs)
        outputs = model(**inputs, return_dict=True)
        kwargs = next_kwargs(model, outputs, before.kwargs)
        after = Prompt(ids, kwargs, before.per_token)
        found[row] = outputs.logits[0, -1].float()
        for child in rows:
            if child[:-1] == row:
                go(child, after.copied())

    go(rows[0], prompt.copied())
    return found


def _likely(model: PreTrainedModel, logits: torch.Tensor) -> list[int]:
    """Seven tokens that may well come next."""
    never = suppressed.tokens(model)
    best = logits.float().nan_to_num().topk(min(len(logits), 7 + len(never))).indices.tolist()
    tokens = [token for token in best if token not in never]
    return [tokens[place % len(tokens)] for place in range(7)]


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """In standard deviations of what is expected; infinite if either is no number."""
    known = torch.isfinite(expected)
    if not known.any() or not torch.equal(known, torch.isfinite(found)):
        return float("inf")
    spread = expected[known].std().clamp_min(1e-9)
    return float((found[known] - expected[known]).abs().max() / spread)


def _said(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".partition("\n")[0][:200]
