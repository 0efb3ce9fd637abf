"""Teacher forcing: recorded answers are generated again, so every method is timed on real text.

A logits processor makes the model choose the next token of the recorded answer; the order of all
other tokens is the model's own.
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
from hf_specplug.hf.prompts import prompt_ids

SHORTEST_ANSWER = 32
"""Tokens that an answer has at least, by default."""

_LONGEST_TEXT = 1800  # tokens of a prompt and its answer


@dataclass(frozen=True)
class Answer:
    """A recorded answer.

    Attributes:
        task: the kind of text.
        prompt: int64[1, n], its token ids.
        tokens: ids of the answer.
    """

    task: str
    prompt: torch.Tensor
    tokens: list[int]


class TeacherForcing(LogitsProcessor):  # type: ignore[misc]
    """Makes the recorded token the most likely one, and keeps the order of the others.

    Args:
        start: the number of tokens before the answer.
        answer: token ids.
    """

    def __init__(self, start: int, answer: list[int]) -> None:
        self.start, self.answer = start, answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self.start
        if position < len(self.answer):
            scores[:, self.answer[position]] += 1e6
        return scores


def load(
    path: str,
    tokenizer: Any,
    per_task: int,
    max_tokens: int,
    seed: int = 0,
    min_tokens: int = SHORTEST_ANSWER,
) -> list[Answer]:
    """Draw `per_task` answers of each task from a JSON-lines file.

    Args:
        path: lines with "prompt" and "response", and optionally "task".
        tokenizer: the model's.
        per_task: answers of each task.
        max_tokens: longer answers are cut to this number of tokens.
        seed: decides which answers are drawn.
        min_tokens: shorter answers are left out.

    Raises:
        RecordingError: a line is something else, or no answer is long enough.
        OSError: the file cannot be read.
    """
    chosen = []
    for task, lines in sorted(_by_task(path).items()):
        random.Random(seed).shuffle(lines)
        taken = 0
        for line in lines:
            prompt = prompt_ids(tokenizer, line["prompt"])
            answer = tokenizer(line["response"], add_special_tokens=False)["input_ids"][:max_tokens]
            if len(answer) < min_tokens or len(prompt) + max_tokens > _LONGEST_TEXT:
                continue
            chosen.append(Answer(task, torch.tensor([prompt]), answer))
            taken += 1
            if taken == per_task:
                break
    if not chosen:
        raise RecordingError(f"{path} holds no answer of {min_tokens} tokens or more")
    return chosen


def _by_task(path: str) -> dict[str, list[dict[str, str]]]:
    lines: dict[str, list[dict[str, str]]] = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
                lines[str(line.get("task", ""))].append(
                    {"prompt": str(line["prompt"]), "response": str(line["response"])}
                )
            except (ValueError, KeyError, AttributeError) as error:
                raise RecordingError(
                    f'{path}, line {number}: needs JSON with "prompt" and "response"'
                ) from error
    return lines


def measure(generate: Callable[..., Any], answer: Answer, arguments: dict[str, Any]) -> float:
    """Time one call of `generate` that is forced to say a recorded answer.

    Args:
        generate: a model's.
        answer: what it is to say.
        arguments: further arguments of `generate`.

    Returns:
        Seconds, the prompt's forward pass included.

    Raises:
        RecordingError: the output is not the recorded answer.
    """
    prompt_length = answer.prompt.shape[1]
    forcing = LogitsProcessorList([TeacherForcing(prompt_length, answer.tokens)])
    start = time.perf_counter()
    output = generate(
        input_ids=answer.prompt,
        attention_mask=torch.ones_like(answer.prompt),
        max_new_tokens=len(answer.tokens),
        do_sample=False,
        logits_processor=forcing,
        **arguments,
    )
    generated = output[0, prompt_length:].tolist()  # waits for the device
    seconds = time.perf_counter() - start
    if generated != answer.tokens:
        raise RecordingError(
            f"the output is not the recorded answer: {generated} instead of {answer.tokens}"
        )
    return seconds
