"""dejavuu, a library of many methods: any of its drafters, as its decoding loop calls them."""

from __future__ import annotations

from typing import Any

import dejavuu.drafters
import numpy as np
from loguru import logger

from hf_specplug.drafters.contract import Int32, TopK
from tests.benchmarks.rivals.base import Drawn, Given, Rival, merged

_WIDTH = 3  # children of a node; 2, its default, makes hardly a difference

logger.disable("dejavuu")


class Dejavuu(Rival):
    """Drafts trees, which its users must ask for; its default are chains.

    Args:
        method: a name that it knows; those that read texts are given them.
    """

    def __init__(self, given: Given, method: str) -> None:
        # equal logits would make its sorting ten times as slow as real ones do
        self._noise = np.random.default_rng(0).normal(-60, 1, given.vocab_size).astype(np.float32)
        texts = [text.tolist() for text in given.texts]
        self._drafter = dejavuu.drafters.make_drafter(method, texts)
        self._looks = type(self._drafter).observe is not dejavuu.drafters.Drafter.observe

    def begin(self, prompt: Int32) -> None:
        self._text: list[int] = prompt.tolist()
        self._answering = False
        self._drafter.reset(self._text)

    def draft(self, limit: int, depth: int) -> Any:
        return self._drafter.propose_tree(self._text, len(self._text) - 1, limit, _WIDTH)

    def tree(self, draft: Any) -> Drawn:
        return merged(draft.token_ids[1:], [parent - 1 for parent in draft.parent[1:]])

    def rows(self, topk: TopK) -> Any:
        """float32[n, vocabulary], logits: those that are recorded, and noise far below.

        None if the method does not look at them.
        """
        if not self._looks:
            return None
        logits = np.tile(self._noise, (len(topk.ids), 1))
        with np.errstate(divide="ignore"):  # a float16 can be 0
            np.put_along_axis(logits, topk.ids, np.log(topk.probs), axis=1)
        return logits

    def observe(self, emitted: Int32, rows: Any) -> None:
        new = emitted.tolist()
        if self._answering:  # it learns nothing from the prompt's pass
            self._drafter.observe([self._text[-1], *new[:-1]], rows)
            self._drafter.update(new)
        self._text += new
        self._answering = True
