"""One recorded text in progress: each step accepts what the answer confirms, and teaches it."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_specplug.drafters.contract import Context, Int32, Step, TopK
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.replay.recording import RecordedText
from hf_specplug.tree import DraftTree


class ReplayedRow:
    """A recorded text that is replayed step by step; it starts after the answer's first token.

    Args:
        text: prompt and answer.
        vocab_size: token ids are in [0, vocab_size).
        search: drafts for it.

    Attributes:
        text, search: those given.
        place: tokens of the answer so far.
    """

    def __init__(self, text: RecordedText, vocab_size: int, search: TreeSearch) -> None:
        self.text, self.search = text, search
        prompt, answer = text.prompt_length, text.answer
        self._context = Context(text.tokens[:prompt], vocab_size)
        search.begin(self._context)
        self._context.append(answer[:1])
        rows = np.arange(max(0, prompt - len(answer)), prompt)
        self._observe(rows, rows[:0], answer[:1])
        self.place = 1

    @property
    def finished(self) -> bool:
        """Whether the whole answer has been replayed."""
        return self.place >= len(self.text.answer)

    @property
    def root(self) -> int:
        """The last accepted token."""
        return int(self.text.answer[self.place - 1])

    @property
    def depth(self) -> int:
        """Maximum depth of the next tree, in tokens."""
        return len(self.text.answer) - self.place - 1

    @property
    def length(self) -> int:
        """Number of tokens of the text so far."""
        return self.text.prompt_length + self.place

    def accepted(self, tree: DraftTree) -> list[int]:
        """The path of a tree that the rest of the answer takes; see `accepted_path`."""
        return accepted_path(tree, self.text.answer[self.place :])

    def advance(self, count: int) -> None:
        """Append the next `count` tokens of the answer; mixer and drafters learn from them."""
        emitted = self.text.answer[self.place : self.place + count]
        self.search.learn(emitted)
        self._context.append(emitted)
        rows = np.arange(self.length - 1, self.length - 1 + count)
        self._observe(rows, np.arange(count), emitted)
        self.place += count

    def _observe(self, rows: Any, visited: Any, emitted: Int32) -> None:
        text = self.text
        topk = TopK(text.topk.ids[rows], text.topk.probs[rows])
        hidden = text.state(int(rows[-1]))
        step = Step.of_text(text.tokens[rows], int(rows[0]), visited, emitted, topk, hidden)
        self.search.observe(step)


def accepted_path(tree: DraftTree, answer: Int32) -> list[int]:
    """The path of a tree that an answer takes: indices, 0 = root."""
    children = tree.children()
    visited = [0]
    for token in answer.tolist():
        child = children.get((visited[-1], token))
        if child is None or len(visited) == len(answer):
            break
        visited.append(child)
    return visited
