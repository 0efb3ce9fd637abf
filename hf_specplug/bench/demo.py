"""`specplug demo`: plain and attached generation on the same prompts."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from hf_specplug.bench.generation import Generation, generate
from hf_specplug.bench.methods import PLAIN, Method
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.store import Datastore, tokenizer_hash
from hf_specplug.drafters.contract import Drafter, Float32, Frontier, Int32, Step
from hf_specplug.hf.prompts import prompt_ids
from hf_specplug.plug import DEFAULT_DRAFTERS, SpecPlug

PROMPTS = (
    "Write a Python function that computes the factorial of n.",
    "Write a Python class for a stack with push, pop and is_empty, and tests for it.",
    "Natalia sold 48 clips in April, and half as many in May. How many did she sell altogether?",
    "Write a Python function that merges two sorted lists.",
    "Explain what a context manager is, with an example.",
)
PENALTY = 1.1
"""Repetition penalty: without it small models repeat themselves, which is too easy to draft."""

_STORE_TOKENS = 2_000_000
_WARMUP_TOKENS = 32


class Recorder(Drafter):
    """Proposes nothing; records which drafters proposed each emitted token."""

    name: ClassVar[str] = "recorder"

    def __init__(self) -> None:
        self.priors: Float32 = np.ones(1, np.float32)
        self.origins: list[int] = []

    def begin(self, context: Any) -> None:
        self.origins = []

    def expand(self, frontier: Frontier) -> Int32:
        return np.empty((0, 3), np.int32)

    def observe(self, step: Step) -> None:
        drafted = step.sources[step.visited[1:]].tolist()
        self.origins += drafted + [0] * (len(step.emitted) - len(drafted))


@dataclass(frozen=True)
class Comparison:
    """One prompt, answered by each method.

    Attributes:
        prompt: the question.
        plain: plain decoding.
        plug: with the default drafters.
        store: also with a datastore; None if not asked for.
        origins: for each token of the answer, the bits of the drafters that proposed it.
    """

    prompt: str
    plain: Generation
    plug: Generation
    store: Generation | None = None
    origins: list[int] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether all methods gave the same tokens."""
        answers = [each.tokens for each in (self.plug, self.store) if each is not None]
        return all(answer == self.plain.tokens for answer in answers)


class Demo:
    """Compares plain decoding, a plug, and a plug with a datastore.

    Args:
        model: attached.
        tokenizer: the model's.
        store: folder of a datastore, or None.

    Attributes:
        plug: the one with the default drafters.
    """

    def __init__(self, model: Any, tokenizer: Any, store: Path | None) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._recorder = Recorder()
        self.plug = SpecPlug(drafters=[*DEFAULT_DRAFTERS, self._recorder])
        self._methods = [Method(PLAIN, {}), Method("plug", {}, self.plug, drafts=True)]
        if store is not None:
            self._methods.append(Method("store", {}, SpecPlug(datastores=[store]), drafts=True))

    def warm_up(self, prompt: str, tokens: int) -> None:
        """Compile, pack and time once, ahead of the comparison."""
        self.compare(prompt, min(tokens, _WARMUP_TOKENS))
        self.plug.stats.reset()

    def compare(self, prompt: str, tokens: int) -> Comparison:
        """Answer a prompt with each method, in at most `tokens` tokens."""
        ids = torch.tensor([prompt_ids(self._tokenizer, prompt)], device=self._model.device)
        settings = {"max_new_tokens": tokens, "do_sample": False, "repetition_penalty": PENALTY}
        answers = [generate(self._model, ids, method, settings) for method in self._methods]
        plain, plug, *store = answers
        origins = list(self._recorder.origins)
        return Comparison(prompt, plain, plug, store[0] if store else None, origins)


def standard_library(tokenizer: Any) -> tuple[Path, bool]:
    """The place of a datastore of Python's standard library in the user's cache.

    Returns:
        (its folder, whether it has been built there)
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_specplug"
    path = cache / f"stdlib-{tokenizer_hash(tokenizer)[:8]}.store"
    return path, path.exists() and not Datastore(path).manifest.build


def build_standard_library(path: Path, tokenizer: Any) -> None:
    """Build a datastore of Python's standard library.

    Raises:
        StoreError, OSError: it cannot be built at `path`.
    """
    files = Corpus(find([sysconfig.get_paths()["stdlib"]]))
    options = BuildOptions(max_tokens=_STORE_TOKENS)
    build(path, files, tokenizer, options, lambda error: None, lambda *counts: None)
