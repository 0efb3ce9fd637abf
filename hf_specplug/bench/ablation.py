"""What each drafter contributes: the answers of a benchmark, replayed with and without it."""

from __future__ import annotations

from typing import Any

from hf_specplug.bench.methods import Method
from hf_specplug.bench.prompts import Question
from hf_specplug.bench.results import Results
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import StoreDrafter, give
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.hf.adapter import vocab_size
from hf_specplug.replay.progress import Progress
from hf_specplug.replay.record import record_text
from hf_specplug.replay.recording import Recording
from hf_specplug.replay.simulate import Cost, replay

NODES = 16
"""Tokens per forward pass of the replays."""

_NEEDS_NOISE = "gumbel"  # replays have no sampling noise


def ablation(
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    method: Method,
    results: Results,
    progress: Progress,
) -> dict[str, Any]:
    """Replay plain decoding's answers with all drafters of a plug, each alone, and all but each.

    The model reads the answers once, which gives what it finds likely at each token. They are then
    replayed through new drafters, without the model.

    Returns:
        method, nodes, and rows: label -> "tokens_per_forward" (the prompt's forward pass not
        included) and "speed" (multiple of plain decoding's, by the measured cost of a forward
        pass); {} if the plug drafts as a paper does, or could not draft.
    """
    plug = method.plug
    if plug is None or plug.published or not results["milliseconds"]:
        return {}
    drafters = [drafter for drafter in plug.drafters if drafter.name != _NEEDS_NOISE]
    states = any("hidden" in drafter.needs for drafter in drafters)
    recording = _recorded(model, tokenizer, questions, results, states, progress)
    if not len(recording):
        return {}
    by_width = results["milliseconds"]["by_width"]
    cost = Cost.of({int(width): ms for width, ms in by_width.items()})
    rows = {}
    groups = _groups([drafter.name for drafter in drafters])
    for label, names in progress(list(groups.items()), "replays"):
        made = _new([drafter for drafter in drafters if drafter.name in names])
        result = replay(recording, made, Mixer([d.name for d in made]), NODES, cost)
        speed = result.speed()
        rows[label] = {"tokens_per_forward": result.total.accept_length, "speed": speed}
    return {"method": method.name, "nodes": NODES, "rows": rows}


def _groups(names: list[str]) -> dict[str, list[str]]:
    groups = {"all": names}
    if len(names) > 1:
        groups |= {f"{name} alone": [name] for name in names}
        groups |= {f"without {name}": [n for n in names if n != name] for name in names}
    return groups


def _new(drafters: list[Drafter]) -> list[Drafter]:
    """New drafters that read the same stores and have learned nothing."""
    made = create([drafter.name for drafter in drafters])
    for drafter in drafters:
        if isinstance(drafter, StoreDrafter):
            give(drafter.stores, [new for new in made if new.name == drafter.name])
    return made


def _recorded(
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    results: Results,
    states: bool,
    progress: Progress,
) -> Recording:
    """What the model finds likely along its own answers."""
    by_name = {question.name: question for question in questions}
    answers: dict[str, list[list[int]]] = {}
    texts = []
    for row in progress(results["rows"], "reading the answers again"):
        name, answer = row["name"], row["answer"]
        before = answers.setdefault(name, [])
        prompt = by_name[name].prompt(tokenizer, before)
        before.append(answer)
        if len(answer) > 1:
            label = f"{name} {row['turn']}"
            texts.append(
                record_text(model, row["task"], label, prompt + answer, len(prompt), states)
            )
    return Recording(results["arguments"]["model"], vocab_size(model), texts)
