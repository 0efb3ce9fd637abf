"""What each drafter is worth: the answers of a benchmark, replayed with and without it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import track

from hf_specplug.bench.methods import Method
from hf_specplug.bench.prompts import Question
from hf_specplug.bench.results import Results
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafters.store_drafter import StoreDrafter, give
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.replay.record import record_text
from hf_specplug.replay.recording import Recording
from hf_specplug.replay.simulate import Cost, replay

NODES = 16
_BLIND = "gumbel"  # a replay has no random numbers


def ablation(
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    way: Method,
    found: Results,
    bars: Console,
) -> dict[str, Any]:
    """The drafters of a plug, together, each alone and each left out.

    Plain decoding's answers are read once by the model, which gives what it found likely, and then
    replayed through fresh drafters.

    Returns:
        method, nodes, and rows: label -> "tokens_per_forward" (the prompt's not included) and
        "speed" (times plain, by the measured cost of a forward pass); {} if the plug
        drafts as a paper does, or could not draft.
    """
    if way.plug is None or way.plug.published or not found["milliseconds"]:
        return {}
    drafters = [drafter for drafter in way.plug.drafters if drafter.name != _BLIND]
    states = any("hidden" in drafter.needs for drafter in drafters)
    recording = _recorded(model, tokenizer, questions, found, states, bars)
    if not len(recording):
        return {}
    by_width = found["milliseconds"]["by_width"]
    cost = Cost.of({int(width): ms for width, ms in by_width.items()})
    rows = {}
    groups = _groups([drafter.name for drafter in drafters])
    for label, names in track(groups.items(), "replaying", console=bars, transient=True):
        made = _fresh([drafter for drafter in drafters if drafter.name in names])
        result = replay(recording, made, Mixer([d.name for d in made]), NODES, cost)
        speed = result.speed()
        rows[label] = {"tokens_per_forward": result.total.accept_length, "speed": speed}
    return {"method": way.name, "nodes": NODES, "rows": rows}


def _groups(names: list[str]) -> dict[str, list[str]]:
    groups = {"all": names}
    if len(names) > 1:
        groups |= {f"{name} alone": [name] for name in names}
        groups |= {f"without {name}": [n for n in names if n != name] for name in names}
    return groups


def _fresh(drafters: list[Drafter]) -> list[Drafter]:
    """New ones that read the same stores, and know nothing of the answers."""
    made = create([drafter.name for drafter in drafters])
    for drafter in drafters:
        if isinstance(drafter, StoreDrafter):
            give(drafter.stores, [new for new in made if new.name == drafter.name])
    return made


def _recorded(
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    found: Results,
    states: bool,
    bars: Console,
) -> Recording:
    """What the model found likely along its own answers."""
    by_name = {question.name: question for question in questions}
    said: dict[str, list[list[int]]] = {}
    texts = []
    for row in track(found["rows"], "reading the answers again", console=bars, transient=True):
        name, answer = row["name"], row["answer"]
        before = said.setdefault(name, [])
        prompt = by_name[name].prompt(tokenizer, before)
        before.append(answer)
        if len(answer) > 1:
            label = f"{name} {row['turn']}"
            texts.append(
                record_text(model, row["task"], label, prompt + answer, len(prompt), states)
            )
    vocab = int(model.config.get_text_config(decoder=True).vocab_size)
    return Recording(found["arguments"]["model"], vocab, texts)
