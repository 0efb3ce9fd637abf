"""Recorded answers, generated again: every method says the same real text, and is timed.

A logits processor makes the target choose the recorded answer's next token; what is below the
chosen token is the model's own.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_specplug.errors import RecordingError

MIN_ANSWER = 32


@dataclass(frozen=True)
class Answer:
    """A prompt int64[1, n] and the tokens that were answered."""

    task: str
    prompt: torch.Tensor
    tokens: list[int]


class TeacherForcing(LogitsProcessor):  # type: ignore[misc]
    """Makes the recorded token the likeliest, and leaves the others' order as it is."""

    def __init__(self, start: int, answer: list[int]) -> None:
        self.start, self.answer = start, answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self.start
        if position < len(self.answer):
            scores[:, self.answer[position]] += 1e6
        return scores


def load(
    path: str, tokenizer: Any, per_task: int, tokens: int, seed: int = 0, least: int = MIN_ANSWER
) -> list[Answer]:
    """`per_task` answers of each task from JSON lines with "task", "prompt" and "response".

    Args:
        tokens: of an answer at most; `least` at least.

    Raises:
        RecordingError: a line is something else, or no answer is long enough.
    """
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                trace = json.loads(line)
                by_task[str(trace.get("task", ""))].append(
                    {"prompt": str(trace["prompt"]), "response": str(trace["response"])}
                )
            except (ValueError, KeyError, AttributeError) as error:
                raise RecordingError(
                    f'{path}, line {number}: needs JSON with "prompt" and "response"'
                ) from error
    chosen = []
    for task, traces in sorted(by_task.items()):
        random.Random(seed).shuffle(traces)
        taken = 0
        for trace in traces:
            prompt = prompt_ids(tokenizer, trace["prompt"])
            answer = tokenizer(trace["response"], add_special_tokens=False)["input_ids"][:tokens]
            if len(answer) < least or len(prompt) + tokens > 1800:
                continue
            chosen.append(Answer(task, torch.tensor([prompt]), answer))
            taken += 1
            if taken == per_task:
                break
    if not chosen:
        raise RecordingError(f"{path} holds no answer of {least} tokens or more")
    return chosen


def prompt_ids(tokenizer: Any, *turns: str) -> list[int]:
    """A question as the model is asked it: by its chat template, if it has one.

    Args:
        turns: question, answer, question, ...; the last one is to be answered.
    """
    if tokenizer.chat_template:
        roles = ("user", "assistant")
        said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    else:
        ids = tokenizer("\n\n".join(turns))["input_ids"]
    return list(ids)


def measure(generate: Callable[..., Any], answer: Answer, arguments: dict[str, Any]) -> float:
    """Seconds that `generate` takes for an answer.

    Raises:
        RecordingError: another text came out.
    """
    start_of_answer = answer.prompt.shape[1]
    forced = LogitsProcessorList([TeacherForcing(start_of_answer, answer.tokens)])
    start = time.perf_counter()
    output = generate(
        input_ids=answer.prompt,
        attention_mask=torch.ones_like(answer.prompt),
        max_new_tokens=len(answer.tokens),
        do_sample=False,
        logits_processor=forced,
        **arguments,
    )
    said = output[0, start_of_answer:].tolist()  # waits for the device
    seconds = time.perf_counter() - start
    if said != answer.tokens:
        raise RecordingError(f"the recorded answer did not come out: {said} is not {answer.tokens}")
    return seconds
