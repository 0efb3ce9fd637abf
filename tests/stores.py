"""Small corpora and a tokenizer that needs no file, for tests of datastores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hf_specplug.datastore.build import Plan, build
from hf_specplug.datastore.corpus import Corpus, find
from hf_specplug.datastore.manifest import Manifest
from hf_specplug.errors import CorpusError


class Letters:
    """A tokenizer whose tokens are letters: from the 960th on by number, so that 0 can be said."""

    name_or_path = "letters"

    def __init__(self, size: int = 96) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        return {f"<{index}>": index for index in range(self._size)}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        rows = [
            [(ord(letter) - 960 if ord(letter) >= 960 else ord(letter)) for letter in text]
            for text in texts
        ]
        return {"input_ids": [[token % self._size for token in row] for row in rows]}


def stop(error: CorpusError) -> None:
    raise error


def silent(documents: int, tokens: int) -> None:
    pass


def texts(folder: Path, count: int = 20, seed: int = 0) -> Path:
    """A folder of `count` files of random letters with repetitions."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 6, 4)) for _ in range(12)]
    for number in range(count):
        text = " ".join(rng.choice(words) for _ in range(30))
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


def make(
    store: Path, corpus: Path, append: bool = False, letters: int = 96, **plan: Any
) -> Manifest:
    return build(
        store, Corpus(find([str(corpus)])), Letters(letters), Plan(**plan), stop, silent, append
    )
