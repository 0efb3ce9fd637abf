"""Prompts of commands and benchmarks: read from files, tokenized by chat template, and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_specplug.errors import RecordingError

_UNLIMITED = 1 << 62  # tokens, for a model without a maximum position


def read_prompts(path: str, per_task: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read prompts from a JSON-lines file.

    Args:
        path: each line has a text "prompt", or a list "turns" whose first entry is the prompt, and
            optionally "task".
        per_task: the maximum number of prompts of each task; 0 for all.

    Yields:
        (name of the line, the line with its "prompt")

    Raises:
        RecordingError: a line is not JSON, or has no prompt.
        OSError: the file cannot be read.

    Example:
        >>> [line["prompt"] for _, line in read_prompts("prompts.jsonl")]  # doctest: +SKIP
        ['What is a loop?']
    """
    taken: dict[str, int] = {}
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            where = f"{path}, line {number}"
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
            if not per_task or taken[task] <= per_task:
                yield f"{Path(path).name}:{number}", line


def prompt_ids(tokenizer: Any, *turns: str) -> list[int]:
    """Token ids of a conversation, by the tokenizer's chat template if it has one.

    Args:
        turns: question, answer, question, ...; the model is to answer the last one.
    """
    if tokenizer.chat_template:
        roles = ("user", "assistant")
        messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    else:
        ids = tokenizer("\n\n".join(turns))["input_ids"]
    return list(ids)


def remaining_tokens(model: Any, prompt: list[int]) -> int:
    """The number of tokens that the model's positions leave for an answer to `prompt`."""
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return max(0, (longest or _UNLIMITED) - len(prompt))


def greedy_answer(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Token ids of the model's greedy answer to a prompt (token ids), without the prompt."""
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
    )
    return output[0, len(prompt) :].tolist()  # type: ignore[no-any-return]
