"""`specplug bench`: ways to decode, taking turns on the same prompts.

No prompt is asked twice of a method: what drafters learn from an answer would make its repetition
too easy. The spread is therefore that over prompts, and methods take turns in another order at
each, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from hf_specplug import DEMO_MODEL
from hf_specplug.attachment import attach
from hf_specplug.bench import environment, page, results, tables
from hf_specplug.bench.methods import PLAIN, Method, parse
from hf_specplug.bench.prompts import Question, load
from hf_specplug.bench.replayed import ablation
from hf_specplug.bench.widths import milliseconds
from hf_specplug.datastore.opening import open_all
from hf_specplug.errors import RecordingError
from hf_specplug.hf import loading
from hf_specplug.replay.record import room
from hf_specplug.replay.teacher_forcing import prompt_ids
from hf_specplug.telemetry import plots

_WARM = "Say in one sentence what you can do."
_WARM_TOKENS = 48  # enough for weights to be packed, and for widths to be timed


def run(
    model_name: str | None,
    prompts: str | None,
    methods: str,
    datastores: Sequence[str],
    per_task: int,
    tokens: int,
    dtype: str,
    temperature: float,
    out: str | None,
    html: str | None,
) -> dict[str, Any]:
    """Measure, print tables, keep `out` up to date, and draw `html`; arguments as the command's.

    A run that was interrupted goes on if `out` holds its beginning.

    Returns:
        What `out` holds, see `results`.

    Raises:
        ModelError, OptionError, RecordingError, StoreError, PlotError: one line says what is wrong.
        KeyboardInterrupt: after writing and printing what was measured.
    """
    questions = load(prompts, per_task)
    stores = open_all(datastores)
    ways = parse(methods, stores)
    if html:  # what cannot be drawn or written fails now
        plots.style()
        open(html, "a", encoding="utf-8").close()
    asked = {
        "model": model_name or "the built-in demo model",
        "prompts": prompts or "the built-in set",
        "methods": [way.name for way in ways],
        "datastores": [str(store) for store in datastores],
        "per_task": per_task,
        "tokens": tokens,
        "dtype": dtype,
        "temperature": temperature,
    }
    found = results.begun(out, results.new(environment.environment(), asked))
    model, tokenizer = loading.load(model_name or str(DEMO_MODEL), dtype)
    for store in stores:
        store.require_tokenizer(tokenizer)
    attach(model)
    console = Console(highlight=False)
    bars = Console(stderr=True)

    def keep() -> None:
        if out:
            environment.save(out, found)

    try:
        keep()
        if any(question.name not in results.names(found) for question in questions):
            _measure(model, tokenizer, questions, ways, found, keep, bars)
        if not found["rows"]:
            raise RecordingError(f"no prompt leaves the model room for {tokens} tokens")
        first = next((way for way in ways if way.plug is not None), None)
        if first is not None and not found["milliseconds"]:
            found["milliseconds"] = milliseconds(model, first, results.middle_length(found), bars)
            keep()
        if first is not None and not found["ablation"]:
            found["ablation"] = ablation(model, tokenizer, questions, first, found, bars)
            keep()
    finally:
        if found["rows"]:
            if html:
                page.write(html, found)
            tables.show(found, console)
    return found


def _measure(
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    ways: list[Method],
    found: dict[str, Any],
    keep: Callable[[], None],
    bars: Console,
) -> None:
    """Ask what was not asked yet; `found` grows by one question at a time."""
    sampling = _sampling(found["arguments"]["temperature"])
    with bars.status("first calls, to compile and to warm up"):
        for way in list(ways):
            try:
                _warm(model, tokenizer, way, sampling, found["arguments"]["tokens"])
            except Exception as error:  # transformers refuses some models in many ways
                if way.name == PLAIN:
                    raise
                found["failed"][way.name] = f"{type(error).__name__}: {error}"
                ways.remove(way)
    known = results.names(found)
    before = dict(found["stats"])
    for number, question in enumerate(track(questions, "prompts", console=bars, transient=True)):
        if question.name in known:
            continue
        order = ways[number % len(ways) :] + ways[: number % len(ways)]
        rows = list(_ask(model, tokenizer, question, order, sampling, found["arguments"], number))
        if not rows:
            found["skipped"].append(question.name)
        found["rows"] += rows
        for way in ways:
            if way.plug is not None:
                stats = way.plug.stats.to_dict()
                found["stats"][way.name] = results.merged(before.get(way.name), stats)
        keep()


def _sampling(temperature: float) -> dict[str, Any]:
    if temperature:
        return {"do_sample": True, "temperature": temperature}
    return {"do_sample": False}


def _warm(model: Any, tokenizer: Any, way: Method, sampling: dict[str, Any], tokens: int) -> None:
    ids = torch.tensor([prompt_ids(tokenizer, _WARM)], device=model.device)
    if way.plug is not None:
        way.plug.warmup(model, ids.shape[1] + tokens, **way.settings)
    for _ in range(2):
        _generate(model, ids, way, {**sampling, "max_new_tokens": _WARM_TOKENS})
    if way.plug is not None:
        way.plug.stats.reset()


def _ask(
    model: Any,
    tokenizer: Any,
    question: Question,
    ways: list[Method],
    sampling: dict[str, Any],
    asked: dict[str, Any],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A row for each turn; what was said before is what plain decoding said, for all methods."""
    said: list[list[int]] = []
    for turn in range(len(question.turns)):
        prompt = question.prompt(tokenizer, said)
        if room(model, prompt) < asked["tokens"]:
            return
        ids = torch.tensor([prompt], device=model.device)
        settings = {**sampling, "max_new_tokens": asked["tokens"]}
        runs: dict[str, dict[str, Any]] = {}
        answers: dict[str, list[int]] = {}
        for way in ways:
            torch.manual_seed(seed)
            answer, seconds, forwards = _generate(model, ids, way, settings)
            answers[way.name] = answer
            runs[way.name] = {"seconds": seconds, "tokens": len(answer), "forwards": forwards}
        for name, answer in answers.items():
            runs[name]["differs_at"] = _first_difference(answer, answers[PLAIN])
        row = {"task": question.task, "name": question.name, "turn": turn}
        yield row | {"prompt_tokens": len(prompt), "answer": answers[PLAIN], "runs": runs}
        said.append(answers[PLAIN])


def _generate(
    model: Any, ids: torch.Tensor, way: Method, settings: dict[str, Any]
) -> tuple[list[int], float, int]:
    """(answer, seconds, forward passes)"""
    before = _drafted(way)
    with _counted(model, way) as count:
        start = time.perf_counter()
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), **settings, **way.arguments
        )
        answer = output[0, ids.shape[1] :].tolist()  # waits for the device
        seconds = time.perf_counter() - start
    calls, forwards = (now - then for now, then in zip(_drafted(way), before, strict=True))
    if calls:
        forwards += 1  # that of the prompt
    return answer, seconds, forwards or len(count) or len(answer)


def _drafted(way: Method) -> tuple[int, int]:
    """Calls that were drafted by our plug so far, and their forward passes."""
    return (0, 0) if way.plug is None else (way.plug.stats.calls, way.plug.stats.forwards)


@contextmanager
def _counted(model: Any, way: Method) -> Iterator[list[None]]:
    """A list that grows with each forward pass, where nothing else tells how many there are."""
    count: list[None] = []
    if way.plug is not None or not way.drafts:  # a hook may cost a compiled model its graph
        yield count
        return
    hook = model.register_forward_pre_hook(lambda *_: count.append(None))
    try:
        yield count
    finally:
        hook.remove()


def _first_difference(answer: list[int], plain: list[int]) -> int | None:
    """The first token that is another one; None if there is none."""
    for place, pair in enumerate(zip(answer, plain, strict=False)):
        if pair[0] != pair[1]:
            return place
    return None if len(answer) == len(plain) else min(len(answer), len(plain))
