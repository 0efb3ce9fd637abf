"""Prompts of a benchmark: JSON lines in the format of Spec-Bench, or the built-in prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_specplug.errors import RecordingError
from hf_specplug.hf.prompts import prompt_ids, read_prompts

BUILT_IN = Path(__file__).parent / "prompts.jsonl"

TASKS = {
    "mt_bench": "Multi-turn Conversation",
    "translation": "Translation",
    "summarization": "Summarization",
    "qa": "Question Answering",
    "math_reasoning": "Mathematical Reasoning",
    "rag": "Retrieval-aug. Generation",
}
"""Spec-Bench's tasks, and the names of its columns (arXiv 2401.07851, table 2)."""

_MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem"}
_MT_BENCH |= {"humanities"}


@dataclass(frozen=True)
class Question:
    """One conversation.

    Attributes:
        task: the kind of question, such as "mt_bench".
        name: unique in its file.
        turns: what the user says in each turn.
    """

    task: str
    name: str
    turns: list[str]

    def prompt(self, tokenizer: Any, answers: Sequence[list[int]]) -> list[int]:
        """Token ids of the next turn, earlier turns and their `answers` (token ids) included."""
        before: list[str] = []
        for text, answer in zip(self.turns, answers, strict=False):
            before += [text, tokenizer.decode(answer, skip_special_tokens=True)]
        return prompt_ids(tokenizer, *before, self.turns[len(answers)])


def load(path: str | None, per_task: int = 0) -> list[Question]:
    """Read the questions of a benchmark.

    Args:
        path: JSON lines with "turns" or "prompt", and optionally "task" (or Spec-Bench's
            "category") and "id" (or "question_id"); None for the built-in prompts.
        per_task: questions of each task, at even distances in the file; 0 for all.

    Raises:
        RecordingError: a line cannot be used (the message names it), or the file has none.
        OSError: the file cannot be read.

    Example:
        >>> [question.task for question in load(None, per_task=1)][:2]
        ['mt_bench', 'translation']
    """
    by_task: dict[str, list[Question]] = defaultdict(list)
    names: set[str] = set()
    for where, line in read_prompts(str(path or BUILT_IN)):
        question = _question(where, line)
        if question.name in names:
            raise RecordingError(
                f'{where}: each "id" must be unique, but {question.name} is repeated'
            )
        names.add(question.name)
        by_task[question.task].append(question)
    if not by_task:
        raise RecordingError(f'{path} holds no prompts: JSON lines with "turns" or "prompt"')
    return [question for group in by_task.values() for question in spread(group, per_task)]


def _question(where: str, line: dict[str, Any]) -> Question:
    turns = line.get("turns") or [line["prompt"]]
    if not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise RecordingError(f'{where}: "turns" must be texts that are not empty')
    task = str(line.get("task") or line.get("category") or "prompts")
    name = str(line.get("id", line.get("question_id", where)))
    return Question("mt_bench" if task in _MT_BENCH else task, name, turns)


def spread(questions: list[Question], count: int) -> list[Question]:
    """`count` questions at even distances; neighbours are often alike."""
    if not count or count >= len(questions):
        return questions
    return [questions[place * len(questions) // count] for place in range(count)]
