"""transformers' prompt lookup, by its own candidate generator."""

from __future__ import annotations

import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from hf_specplug.drafters.contract import Int32
from tests.benchmarks.rivals.base import Drawn, Given, Rival, chain


class PromptLookup(Rival):
    """Copies what followed the last tokens where they first occurred.

    Args:
        ngram: of how many last tokens is looked for an earlier occurrence at most.
        tokens: to copy (`prompt_lookup_num_tokens`); None: as many as may be drafted.
    """

    def __init__(self, given: Given, ngram: int, tokens: int | None = None) -> None:
        self._tokens = tokens
        self._generator = PromptLookupCandidateGenerator(max_matching_ngram_size=ngram)

    def begin(self, prompt: Int32) -> None:
        self._text = torch.tensor(prompt, dtype=torch.int64)[None]

    def draft(self, limit: int, depth: int) -> torch.Tensor:
        length = self._text.shape[1]
        self._generator.num_output_tokens = limit if self._tokens is None else self._tokens
        self._generator.max_length = length + depth + 1
        candidates, _ = self._generator.get_candidates(self._text)
        return candidates[0, length:]

    def tree(self, draft: torch.Tensor) -> Drawn:
        return chain(draft.tolist())

    def observe(self, emitted: Int32, rows: object) -> None:
        new = torch.tensor(emitted, dtype=torch.int64)[None]
        self._text = torch.cat((self._text, new), dim=1)
