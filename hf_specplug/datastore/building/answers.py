"""A model's greedy answers as a corpus: `specplug build --from-model-outputs`.

How a prompt is answered is injected, since models are run by rooms above this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_specplug.datastore.building.corpus import Corpus, Document
from hf_specplug.datastore.building.executors import Batch, LocalExecutor, Rows
from hf_specplug.errors import CorpusError, RecordingError

ANSWER_SHARD_TOKENS = 1 << 16
"""Tokens of a shard at most: answers that are not in a shard yet are lost by an interruption."""

ReadPrompts = Callable[[str], Iterable[str]]
"""Yields the prompts of a file. May raise RecordingError or OSError."""

Answer = Callable[[str], list[int]]
"""The token ids of a model's answer to a prompt."""


@dataclass(frozen=True)
class PromptCorpus(Corpus):
    """Prompts as documents.

    Attributes:
        files: files of prompts.
        model: name of the model that answers them; it is part of the fingerprint, since the
            answers are what the datastore holds.
        read: yields the prompts of a file.
    """

    model: str = field(kw_only=True)
    read: ReadPrompts = field(kw_only=True)

    @property
    def holds_texts(self) -> bool:
        return False  # the datastore will hold the answers

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.model}"

    def count(self) -> int | None:
        return None

    def documents(self, on_error: Callable[[CorpusError], None]) -> Iterator[Document]:
        for name in self.files:
            try:
                yield from self.read(name)
            except (RecordingError, OSError) as error:
                on_error(CorpusError(str(error)))


class AnsweringExecutor(LocalExecutor):
    """Replaces each prompt by the tokens of the model's answer.

    Args:
        answer: answers a prompt.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def tokenize(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        for batch in batches:
            for number, prompt in batch:
                answer = np.array(self._answer(str(prompt)) if len(prompt) else [], np.int32)
                padding = np.flatnonzero(answer >= len(tokenizer))  # ids of a padded vocabulary
                yield [(number, prompt)], [answer[: padding[0]] if len(padding) else answer]
