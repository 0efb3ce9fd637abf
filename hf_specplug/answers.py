"""A model's answers as a corpus: `specplug build --from-model-outputs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_specplug.datastore.building.corpus import Corpus, Document
from hf_specplug.datastore.building.executors import Batch, Local, Rows
from hf_specplug.errors import CorpusError, RecordingError
from hf_specplug.hf.prompts import greedy_answer, prompt_ids, read_prompts, remaining_tokens
from hf_specplug.replay.record import load_attached

LONGEST = 512
"""Tokens of an answer at most."""

SHARD = 1 << 16
"""Tokens of a shard at most: an interruption loses what is not in one yet."""


@dataclass(frozen=True)
class Prompts(Corpus):
    """What a model is asked: files as `specplug record` reads them.

    Attributes:
        model: which one, as its answers are what the store holds.
    """

    model: str = ""

    @property
    def repeatable(self) -> bool:
        return False  # these are questions, and the store will hold answers

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.model}"

    def count(self) -> int | None:
        return None

    def documents(self, on_error: Callable[[CorpusError], None]) -> Iterator[Document]:
        for name in self.files:
            try:
                for _, line in read_prompts(name):
                    yield line["prompt"]
            except (RecordingError, OSError) as error:
                on_error(CorpusError(str(error)))


class Answering(Local):
    """Takes a document for a question, and the tokens of the model's greedy answer for its own.

    Args:
        model: folder or Hub name.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, model: str) -> None:
        self._model, self._tokenizer = load_attached(model)

    def tokenised(self, tokenizer: Any, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
        for batch in batches:
            for number, text in batch:
                answer = np.array(self._answer(str(text)) if text else [], np.int32)
                strange = np.flatnonzero(answer >= len(tokenizer))  # of a padded vocabulary
                yield [(number, text)], [answer[: strange[0]] if len(strange) else answer]

    def _answer(self, text: str) -> list[int]:
        prompt = prompt_ids(self._tokenizer, text)
        tokens = min(LONGEST, remaining_tokens(self._model, prompt))
        return greedy_answer(self._model, prompt, tokens) if prompt and tokens else []
