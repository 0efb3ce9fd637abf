"""`specplug record`: write down what a model found likely at every token of some texts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from hf_specplug.attachment import attach
from hf_specplug.drafters.contract import TopK
from hf_specplug.errors import RecordingError
from hf_specplug.hf import loading
from hf_specplug.hf.hidden_states import HiddenStateHook
from hf_specplug.hf.hidden_states import rows as rows_of
from hf_specplug.replay.recording import RecordedText, Recording, load
from hf_specplug.replay.teacher_forcing import prompt_ids
from hf_specplug.verify.outputs import Outputs

_SAVE_EVERY = 60.0  # seconds of work that an interruption may lose
_ROWS = 256  # rows of logits to sort at a time
_LEAST = 2  # tokens of an answer
_FLOAT16 = 65504.0  # the largest number


def run(
    model_name: str,
    texts: str,
    out: str,
    tokens: int,
    limit: int,
    device: str | None,
    states: bool = False,
) -> Recording:
    """Record the texts of a JSON-lines file; continue if `out` holds some of them already.

    Args:
        texts: lines with "prompt" (or "turns", of which the first is asked), and optionally "task"
            and "response"; without a response the model answers itself, greedily.
        tokens: of an answer at most.
        limit: texts per task at most; 0 for all.
        device: as torch names it.
        states: also record hidden states, of the last layer.

    Raises:
        RecordingError: a line that is not understood, or `out` is something else.
        OSError: the model or a file cannot be read.
    """
    console = Console(highlight=False, stderr=True)
    lines = list(asked(texts, limit))
    traces: list[RecordedText] = []
    if Path(out).exists():
        begun = load(out)
        if begun.model != model_name:
            raise RecordingError(f"{out} is a recording of {begun.model}; choose another --out")
        if any((trace.hidden is not None) != states for trace in begun):
            raise RecordingError(f"{out} was begun with other --states; choose another --out")
        traces = list(begun.texts)
    model, tokenizer = loaded(model_name, device)
    vocab = int(model.config.get_text_config(decoder=True).vocab_size)
    known = {trace.name for trace in traces}
    saved = time.monotonic()
    try:
        for name, line in track(lines, "recording", console=console, transient=True):
            if name not in known:
                trace = _trace(model, tokenizer, name, line, tokens, states)
                if trace is not None:
                    traces.append(trace)
            if time.monotonic() - saved > _SAVE_EVERY:
                Recording(model_name, vocab, traces).save(out)
                saved = time.monotonic()
    finally:
        recording = Recording(model_name, vocab, traces)
        recording.save(out)
    return recording


def loaded(model_name: str, device: str | None = None) -> tuple[Any, Any]:
    """A model with a plug, and its tokenizer.

    Raises:
        ModelError: it cannot be loaded.
    """
    model, tokenizer = loading.load(model_name, device=device)
    attach(model)
    return model, tokenizer


def asked(texts: str, limit: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, line with a "prompt"), at most `limit` of each task; 0: all.

    Raises:
        RecordingError: a line that is not understood.
    """
    taken: dict[str, int] = {}
    with open(texts, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            where = f"{texts}, line {number}"
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise RecordingError(f"{where} is not JSON: {error}") from error
            if isinstance(line, dict) and isinstance(line.get("turns"), list) and line["turns"]:
                line.setdefault("prompt", line["turns"][0])
            if not isinstance(line, dict) or not isinstance(line.get("prompt"), str):
                raise RecordingError(f'{where} needs a text under "prompt" (or a list "turns")')
            task = str(line.get("task", "text"))
            taken[task] = taken.get(task, 0) + 1
            if not limit or taken[task] <= limit:
                yield f"{Path(texts).name}:{number}", line


def _trace(
    model: Any, tokenizer: Any, name: str, line: dict[str, Any], tokens: int, states: bool
) -> RecordedText | None:
    """The text with its rows; None if it is too short, or too long for the model."""
    prompt = prompt_ids(tokenizer, line["prompt"])
    if tokens > room(model, prompt):
        return None
    if isinstance(line.get("response"), str):
        answer = tokenizer(line["response"], add_special_tokens=False)["input_ids"][:tokens]
    else:
        answer = greedy(model, prompt, tokens)
    if len(answer) < _LEAST or not prompt:
        return None
    task = str(line.get("task", "text"))
    return record_text(model, task, name, prompt + answer, len(prompt), states)


def record_text(
    model: Any, task: str, name: str, tokens: list[int], prompt_length: int, states: bool = False
) -> RecordedText:
    """A text with what the model finds likely after each of its tokens, and with its states."""
    watch = HiddenStateHook(model) if states else None
    with torch.inference_mode(), watch or nullcontext():
        logits = model(torch.tensor([tokens], device=model.device)).logits[0]
        rows = [Outputs(part).topk() for part in logits.split(_ROWS)]
    topk = TopK(np.concatenate([r.ids for r in rows]), np.concatenate([r.probs for r in rows]))
    seen = None if watch is None else watch.of(0, len(tokens) - prompt_length + 1)
    hidden = None if seen is None else rows_of(seen).clip(-_FLOAT16, _FLOAT16).astype(np.float16)
    return RecordedText(task, name, np.array(tokens, np.int32), prompt_length, topk, hidden)


def room(model: Any, prompt: list[int]) -> int:
    """Tokens that the model can say after a prompt."""
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return max(0, (longest or 1 << 62) - len(prompt))


def greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """What the model answers, up to `tokens`."""
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
    )
    return output[0, len(prompt) :].tolist()  # type: ignore[no-any-return]
