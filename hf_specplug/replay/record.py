"""Recording: write down what a model found likely at every token of some texts."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_specplug.drafters.contract import TopK
from hf_specplug.entrypoints.attachment import attach
from hf_specplug.errors import RecordingError
from hf_specplug.hf import loading
from hf_specplug.hf.adapter import vocab_size
from hf_specplug.hf.hidden_states import HiddenStateHook
from hf_specplug.hf.hidden_states import rows as rows_of
from hf_specplug.hf.prompts import greedy_answer, prompt_ids, read_prompts, remaining_tokens
from hf_specplug.replay.progress import Progress, silent
from hf_specplug.replay.recording import RecordedText, Recording, load
from hf_specplug.verify.outputs import Outputs

_SAVE_EVERY = 60.0  # seconds of work that an interruption may lose
_ROWS = 256  # rows of logits to sort at a time
_SHORTEST_ANSWER = 2  # tokens
_FLOAT16_MAX = 65504.0


def record(
    model_name: str,
    texts: str,
    out: str,
    max_tokens: int = 512,
    per_task: int = 0,
    device: str | None = None,
    states: bool = False,
    progress: Progress = silent,
) -> Recording:
    """Record the texts of a JSON-lines file. Continue if `out` already holds some of them.

    Args:
        model_name: folder or Hub name.
        texts: lines with "prompt" (or "turns", of which the first is used), and optionally "task"
            and "response"; the model answers prompts without a response greedily.
        out: the recording; saved every minute, and when an error or Control-C ends the run.
        max_tokens: the maximum length of an answer in tokens.
        per_task: the maximum number of texts of each task; 0 for all.
        device: a torch device.
        states: also record hidden states of the last layer.
        progress: shows how many lines are done.

    Raises:
        RecordingError: a line cannot be used, or `out` is a recording of another kind.
        ModelError: the model cannot be loaded.
        OSError: a file cannot be read or written.

    Example:
        >>> record("Qwen/Qwen3-0.6B", "prompts.jsonl", "my.safetensors")  # doctest: +SKIP
    """
    lines = list(read_prompts(texts, per_task))
    recorded = _recorded(out, model_name, states)
    model, tokenizer = load_attached(model_name, device)

    def save() -> Recording:
        recording = Recording(model_name, vocab_size(model), recorded)
        recording.save(out)
        return recording

    known = {text.name for text in recorded}
    saved = time.monotonic()
    try:
        for name, line in progress(lines, "recording"):
            if name not in known:
                text = record_line(model, tokenizer, name, line, max_tokens, states)
                recorded += [] if text is None else [text]
            if time.monotonic() - saved > _SAVE_EVERY:
                save()
                saved = time.monotonic()
    finally:
        recording = save()
    return recording


def _recorded(out: str, model_name: str, states: bool) -> list[RecordedText]:
    """The texts that an interrupted run has saved."""
    if not Path(out).exists():
        return []
    recording = load(out)
    if recording.model != model_name:
        raise RecordingError(f"{out} is a recording of {recording.model}; choose another --out")
    if any((text.hidden is not None) != states for text in recording):
        raise RecordingError(f"{out} was begun with other --states; choose another --out")
    return list(recording.texts)


def load_attached(model_name: str, device: str | None = None) -> tuple[Any, Any]:
    """An attached model and its tokenizer.

    Raises:
        ModelError: the model cannot be loaded.
    """
    model, tokenizer = loading.load(model_name, device=device)
    attach(model)
    return model, tokenizer


def record_line(
    model: Any,
    tokenizer: Any,
    name: str,
    line: dict[str, Any],
    max_tokens: int,
    states: bool = False,
) -> RecordedText | None:
    """Record one line of a prompts' file; the model answers if the line has no "response".

    Returns:
        None if the answer is shorter than two tokens, or the model has no room for `max_tokens`.
    """
    prompt = prompt_ids(tokenizer, line["prompt"])
    if max_tokens > remaining_tokens(model, prompt):
        return None
    if isinstance(line.get("response"), str):
        answer = tokenizer(line["response"], add_special_tokens=False)["input_ids"][:max_tokens]
    else:
        answer = greedy_answer(model, prompt, max_tokens)
    if len(answer) < _SHORTEST_ANSWER or not prompt:
        return None
    task = str(line.get("task", "text"))
    return record_text(model, task, name, prompt + answer, len(prompt), states)


def record_text(
    model: Any, task: str, name: str, tokens: list[int], prompt_length: int, states: bool = False
) -> RecordedText:
    """Record one text in one forward pass: the model's likeliest next tokens at each position.

    Args:
        model: any causal language model of transformers.
        task: the kind of text, for averages by task.
        name: unique in its recording.
        tokens: ids of prompt and answer.
        prompt_length: how many of them are the prompt.
        states: also record the hidden states of the last layer.

    Example:
        >>> ids = tokenizer("def add(a, b):\\n    return a + b")["input_ids"]  # doctest: +SKIP
        >>> recorded = record_text(model, "code", "add", ids, prompt_length=8)  # doctest: +SKIP
    """
    hook = HiddenStateHook(model) if states else None
    with torch.inference_mode(), hook or nullcontext():
        logits = model(torch.tensor([tokens], device=model.device)).logits[0]
        rows = [Outputs(part).topk() for part in logits.split(_ROWS)]
    topk = TopK(np.concatenate([r.ids for r in rows]), np.concatenate([r.probs for r in rows]))
    hidden = None
    seen = None if hook is None else hook.of(0, len(tokens) - prompt_length + 1)
    if seen is not None:
        hidden = rows_of(seen).clip(-_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
    return RecordedText(task, name, np.array(tokens, np.int32), prompt_length, topk, hidden)
