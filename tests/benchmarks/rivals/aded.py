"""ADED (arXiv 2407.12021), by its authors' package: trigrams of texts, searched by Monte Carlo."""

from __future__ import annotations

import draftretriever

from hf_specplug.drafters.contract import Int32
from tests.benchmarks.rivals.base import Drawn, Given, Rival, merged

_SPAN = 16  # of the text's last tokens, all that a search looks at and learns from


class Aded(Rival):
    """Its reader of an index that its writer makes of the texts; it learns as it searches."""

    def __init__(self, given: Given) -> None:
        path = given.folder / "aded.idx"
        if not path.exists():
            writer = draftretriever.Writer(file_path=str(path), vocab_size=given.vocab_size)
            for text in given.texts:
                writer.add_entry(text.tolist())
            writer.finalize()
        self._reader = draftretriever.Reader(index_file_path=str(path))

    def begin(self, prompt: Int32) -> None:
        self._text = prompt[-_SPAN:].tolist()

    def draft(self, limit: int, depth: int) -> list[list[int]]:
        if len(self._text) < 2:  # it would end the process
            return []
        found = self._reader.search(self._text, choices=limit)
        return found[0]  # paths; the rest are masks and positions of them for its own forward pass

    def tree(self, draft: list[list[int]]) -> Drawn:
        tokens: list[int] = []
        parents: list[int] = []
        for path in draft:
            real = [token for token in path if token >= 0]  # paths are padded
            parents += [-1, *range(len(tokens), len(tokens) + len(real) - 1)][: len(real)]
            tokens += real
        return merged(tokens, parents)

    def observe(self, emitted: Int32, rows: object) -> None:
        self._text = [*self._text, *emitted.tolist()][-_SPAN:]
