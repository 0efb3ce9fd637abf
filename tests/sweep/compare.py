"""One entry: plain `generate` against an attached plug, on the same inputs with the same seed."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_specplug import SpecPlug
from hf_specplug.drafters.contract import Drafter
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.oracle import Replay
from tests.helpers.runs import plain, plugged
from tests.sweep import inputs
from tests.sweep.recipe import MAPPINGS, VOCAB, build, model_type

NEW = 48
GREEDY: dict[str, Any] = {"do_sample": False}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_k": 20}
ROUNDING = 1e-4
"""What float32 may do to a logit, in standard deviations of the logits."""


@dataclass
class Row:
    """What became of an entry.

    Attributes:
        outcome: "tree", "chain" or "plain", as it was drafted, with identical tokens; "crash" or
            "differs" where plain `generate` works and an attached one does not give the same; "not
            built" where there is nothing to compare with.
        reason: why not a tree; what went wrong.
        images: how a prompt with an image or sound was drafted; "always" if there is no other
            prompt, "not taken", or why it could not be tried.
        notes: what else is to be known.
        distinct: different tokens in plain's greedy text; with few the test is weak.
        tokens, forwards: of the greedy text with right drafts, and wrong ones in between.
    """

    mapping: str
    model_type: str
    kind: str = ""
    outcome: str = ""
    reason: str = ""
    images: str = "not taken"
    notes: list[str] = field(default_factory=list)
    distinct: int = 0
    tokens: int = 0
    forwards: int = 0
    seconds: float = 0.0


@dataclass
class Case:
    """Inputs, and how they are continued."""

    name: str
    inputs: dict[str, Any]
    settings: dict[str, Any]

    def ways(self, reference: list[int]) -> list[tuple[str, list[str | Drafter], int]]:
        """(name, drafters, nodes)"""
        new = reference[-NEW:]
        right = Replay(new, siblings=2, wrong=lambda at: at % 7 == 6, vocab=VOCAB)
        ways: list[tuple[str, list[str | Drafter], int]] = [("replayed", [right], 12)]
        if self.name == "greedy":  # wrong siblings first, so that the right ones are gathered
            ways.insert(0, ("misled", [Replay(new, rank=1, vocab=VOCAB)], 14))
        if self.name != "padded":
            ways.insert(0, ("drafted", list(DEFAULT_DRAFTERS), 12))
        return ways


class Differs(Exception):
    """Attached gave something else than plain."""


def check(mapping: str, name: str, say: Callable[[str], None] = lambda stage: None) -> Row:
    """Build an entry's model and compare.

    Args:
        say: told what is about to be done, in case that it ends the process.
    """
    row = Row(mapping, name, MAPPINGS[mapping][model_type(name)])
    start = time.perf_counter()
    stage = "build"
    try:
        say(stage)
        model = build(mapping, name)
        for case in _cases(model, row):
            stage = f"plain {case.name}"
            say(stage)
            try:
                reference = _plain(model, case)
            except Exception as problem:
                if case.name == "greedy":
                    raise
                row.notes.append(f"{stage}: {type(problem).__name__}: {str(problem)[:120]}")
                continue
            if case.name == "greedy":
                row.distinct = len(set(reference[0][-NEW:]))
            for how, drafters, nodes in case.ways(reference[0]):
                stage = f"{how} {case.name}"
                say(stage)
                plug = _same(model, case, reference, (drafters, nodes), row, stage)
            _note(row, case, plug)
    except Differs as problem:
        row.outcome, row.reason = "differs", str(problem)
    except Exception as problem:
        row.outcome = "not built" if stage in ("build", "plain greedy") else "crash"
        row.reason = f"{stage}: {_said(problem)}"
        traceback.print_exc()
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def _cases(model: PreTrainedModel, row: Row) -> list[Case]:
    prompt = inputs.prompt(model)
    cases = [Case("greedy", prompt, GREEDY), Case("sampled", prompt, SAMPLED)]
    if not model.config.is_encoder_decoder and set(prompt) == {"input_ids", "attention_mask"}:
        cases.append(Case("padded", inputs.text(model, pads=5), GREEDY))
    if set(prompt) - {"input_ids", "attention_mask", "bbox"}:
        row.images = "always"
    try:
        shown = inputs.pictures(model)
    except Exception as problem:
        row.images = f"not fed: {_said(problem)}"
    else:
        if shown is not None:
            cases.append(Case("images", shown, GREEDY))
    return cases


def _plain(model: PreTrainedModel, case: Case) -> tuple[list[int], torch.Tensor]:
    output, state = plain(model, case.inputs, max_new_tokens=NEW, **case.settings)
    return _tokens(output), state


def _same(
    model: PreTrainedModel,
    case: Case,
    reference: tuple[list[int], torch.Tensor],
    how: tuple[list[str | Drafter], int],
    row: Row,
    stage: str,
) -> SpecPlug:
    output, state, plug = plugged(model, case.inputs, *how, max_new_tokens=NEW, **case.settings)
    if plug.stats.dropped:
        raise RuntimeError(f"a drafter was dropped: {plug.stats.dropped}")
    at = _first(_tokens(output), reference[0])
    if at is None and torch.equal(state, reference[1]):
        return plug
    how_run = ", ".join(filter(None, _mode(plug)))
    if at is None:
        raise Differs(f"{stage}: another state of the random generator ({how_run})")
    new = at - (len(reference[0]) - NEW)
    print(f"{stage}: attached {_tokens(output)[at : at + 8]}, plain {reference[0][at : at + 8]}")
    rounding, exact = _is_rounding(model, case, how, at)
    if exact and rounding:
        row.notes.append(f"{stage}: identical in float64 (float32 tie)")
        return plug
    also = "; identical in float64" if exact else ""
    raise Differs(f"{stage}: from new token {new} of {NEW} ({how_run}{also})")


def _is_rounding(
    model: PreTrainedModel, case: Case, how: tuple[list[str | Drafter], int], at: int
) -> tuple[bool, bool]:
    """(whether the logits of the first token that differs are the same but for rounding, whether
    the text is identical in float64). The model is left in float32."""
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    settings = {"max_new_tokens": NEW, **case.settings, **wanted}
    logits = []
    with torch.random.fork_rng(devices=[]):
        for output in (
            plain(model, case.inputs, **settings)[0],
            plugged(model, case.inputs, *how, **settings)[0],
        ):
            logits.append(output.logits[at - output.sequences.numel() + NEW][0].double())
        off = float((logits[0] - logits[1]).abs().max() / logits[0].std())
        grouped = model.get_experts_implementation()
        if grouped:  # grouped_mm knows no float64
            model.set_experts_implementation("eager")
        model.double()
        try:
            wide = {k: v.double() if v.is_floating_point() else v for k, v in case.inputs.items()}
            double = Case(case.name, wide, case.settings)
            tokens, _ = _plain(model, double)
            output, _, _ = plugged(model, wide, *how, max_new_tokens=NEW, **case.settings)
            exact = _first(_tokens(output), tokens) is None
        except Exception as problem:  # some know no float64
            print(f"float64: {_said(problem)}")
            exact = False
        finally:
            model.float()
    print(f"logits are off by {off:.2g} deviations; identical in float64: {exact}")
    return off < ROUNDING, exact


def _note(row: Row, case: Case, plug: SpecPlug) -> None:
    mode, reason = _mode(plug)
    if case.name == "greedy":
        row.outcome, row.reason = mode, reason
        row.tokens, row.forwards = plug.stats.tokens, plug.stats.forwards
    elif case.name == "images":
        row.images = mode if mode == row.outcome else f"{mode}: {reason}"
    elif mode != row.outcome:
        row.notes.append(f"{case.name}: {mode}: {reason}")


def _mode(plug: SpecPlug) -> tuple[str, str]:
    """How a plug's call was run, and why not as a tree."""
    reason = "; ".join(plug.stats.fallbacks)
    if not plug.stats.calls:
        return "plain", reason or "its own way to generate does not ask for a decoding method"
    return ("chain" if reason else "tree"), reason


def _tokens(output: Any) -> list[int]:
    """The tokens of a batch, one row after the other."""
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    return [int(token) for token in sequences.flatten().tolist()]


def _first(one: list[int], other: list[int]) -> int | None:
    """Where two texts begin to differ."""
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _said(problem: Exception) -> str:
    """An error, and where it was raised."""
    at = traceback.extract_tb(problem.__traceback__)[-1]
    where = f"{at.filename.rpartition('site-packages/')[2]}:{at.lineno}"
    text = " ".join(str(problem).split())[:200]
    return f"{type(problem).__name__}: {text} ({where})"
