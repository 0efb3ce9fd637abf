"""A model's states after the tokens of a corpus: what `specplug build --kind dense` indexes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from hf_specplug.datastore.building.corpus import Corpus, Document
from hf_specplug.datastore.building.executors import tokenise
from hf_specplug.datastore.dense import DIMS, DenseIndex, fitted, transformed
from hf_specplug.datastore.index import Arrays
from hf_specplug.errors import CorpusError, OptionError
from hf_specplug.hf import loading
from hf_specplug.hf.hidden_states import LAST, HiddenStateHook, Stop, rows, signature

WINDOW = 1024
"""Tokens of a long document that the model reads at a time, if it can read as many."""

CONTEXT = 256
"""Tokens before, that it reads again."""

SHARD = 1 << 17
"""Tokens of a part of a build: an interruption loses what is not in one yet."""

_DOCUMENTS, _SAMPLE, _PIECE = 2048, 1 << 16, 512  # what the transform is fitted to
_LETTERS = 8  # of a token, and rarely more
_BATCH = 8192  # tokens of a forward pass, padding included

Float32 = NDArray[np.float32]
_Window = tuple[NDArray[np.int64], int, int]  # tokens; the first one wanted; its place in the shard


class Embedding:
    """Indexes a shard by a model's states, as `engines.Build` does. A worker loads the model once.

    Args:
        model: folder or Hub name of a decoder-only model.
        layer: of the decoder, from 0; -1: the last one, as its output embedding reads it.
        transform: of the store, if it has one already; else `fit` makes it, or the first shard.
        alone: whether all shards are indexed in this process.

    Attributes:
        accelerated: True; see `engines.Build`.
        transform: float32[width + 1, dims], None before it is known.

    Raises:
        OSError: the model cannot be read.
        OptionError: it has no such layer, or an encoder.
    """

    accelerated = True

    def __init__(
        self,
        model: str,
        layer: int = LAST,
        transform: Float32 | None = None,
        alone: bool = True,
    ) -> None:
        self._name, self._layer, self.transform, self._alone = model, layer, transform, alone
        HiddenStateHook(_loaded(model), layer)

    @property
    def dims(self) -> int:
        """Numbers that are kept of a state."""
        config = _loaded(self._name).config.get_text_config(decoder=True)
        return min(DIMS, int(config.hidden_size))

    def settings(self, index: str) -> dict[str, Any]:
        """What the manifest of a store says of it."""
        model = {"name": self._name, "hash": signature(_loaded(self._name))}
        return {"model": model, "layer": self._layer, "metric": "inner_product", "index": index}

    def fit(self, corpus: Corpus, tokenizer: Any, max_tokens: int = 0) -> None:
        """Fit the transform to documents from all over a corpus, which is read twice for that.

        What can be read only once, or is not what will be indexed, is left to the first shard.

        Args:
            max_tokens: of the corpus that are indexed; 0: all.

        Raises:
            CorpusError: shards are made by several processes, which cannot fit it each.
        """
        if self.transform is not None:
            return
        if not corpus.repeatable:
            if not self._alone:
                raise CorpusError(
                    "standard input is read once, and workers need to know first how states are "
                    "projected: give files instead, or take --engine local"
                )
            return
        longest = min(_PIECE, _longest(_loaded(self._name)))
        pieces = _chosen(corpus.documents(_pass), _DOCUMENTS, max_tokens * _LETTERS)
        texts = tokenise(tokenizer, [piece[: _LETTERS * longest] for piece in pieces])
        windows = [(text[:longest].astype(np.int64), 0, 0) for text in texts if len(text)]
        enough = np.searchsorted(np.cumsum([len(window[0]) for window in windows]), _SAMPLE) + 1
        states = [found for _, found in self._states(windows[:enough])]
        if states:
            self.transform = fitted(np.concatenate(states))

    @staticmethod
    def release() -> None:
        """Give back the memory of the model, which is loaded again if it is needed."""
        _loaded.cache_clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __call__(self, tokens: NDArray[Any], vocab: int) -> Arrays:
        windows = list(_windows(tokens, vocab, _longest(_loaded(self._name))))
        if self.transform is None:
            states = [found for _, found in self._states(windows[: _SAMPLE // CONTEXT])]
            self.transform = fitted(np.concatenate(states))
        vectors = np.zeros((len(tokens), self.transform.shape[1]), np.float32)
        for place, found in self._states(windows):
            vectors[place : place + len(found)] = transformed(found, self.transform)
        return DenseIndex.of_vectors(tokens, vectors, self.transform, vocab)

    def state(self, tokens: NDArray[Any]) -> Float32:
        """float32[width], after the last of some tokens."""
        ((_, states),) = self._states([(tokens.astype(np.int64), len(tokens) - 1, 0)])
        last: Float32 = states[0]
        return last

    def _states(self, windows: list[_Window]) -> Iterator[tuple[int, Float32]]:
        """(place in the shard, float32[_, width]) of the wanted part of each window."""
        model = _loaded(self._name)
        for batch in _batches(windows):
            width = max(len(tokens) for tokens, _, _ in batch)
            ids = torch.zeros((len(batch), width), dtype=torch.int64)
            for row, (tokens, _, _) in zip(ids, batch, strict=True):
                row[: len(tokens)] = torch.from_numpy(tokens)
            watch = HiddenStateHook(model, self._layer, stop=True)
            with torch.inference_mode(), watch, suppress(Stop):
                model(ids.to(model.device), use_cache=False)
            for i, (tokens, first, place) in enumerate(batch):
                seen = watch.of(i)
                if seen is None:
                    raise OptionError(f"the layer {self._layer} of {self._name} is not used")
                yield place, rows(seen[first : len(tokens)])


@lru_cache(maxsize=1)
def _loaded(name: str) -> Any:
    """A decoder-only model where it is fastest."""
    if AutoConfig.from_pretrained(name).is_encoder_decoder:
        raise OptionError(f"{name} has an encoder: dense stores are for decoder-only models")
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    except ValueError as error:
        raise OptionError(f"{name} is no causal language model: {error}") from error
    except Exception as error:  # damaged files fail in many ways
        raise loading.model_error(name, error) from error
    if torch.cuda.is_available():
        return model.to("cuda")
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return model if fast and model.dtype == torch.bfloat16 else model.float()


def _longest(model: Any) -> int:
    config = model.config.get_text_config(decoder=True)
    return min(WINDOW, getattr(config, "max_position_embeddings", None) or WINDOW)


def _windows(tokens: NDArray[Any], vocab: int, longest: int) -> Iterator[_Window]:
    """Documents of a shard, long ones in overlapping parts."""
    context = min(CONTEXT, longest // 2)
    begin = 0
    for end in [*np.flatnonzero(tokens == vocab).tolist(), len(tokens)]:
        document = tokens[begin:end].astype(np.int64)
        place = 0
        while place < len(document):
            start = max(0, place - context)
            part = document[start : start + longest]
            yield part, place - start, begin + place
            place = start + len(part)
        begin = end + 1


def _batches(windows: list[_Window]) -> Iterator[list[_Window]]:
    """Windows of about the same length together."""
    batch: list[_Window] = []
    for window in sorted(windows, key=lambda window: len(window[0])):
        if batch and (len(batch) + 1) * len(window[0]) > _BATCH:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _chosen(documents: Iterator[Document], count: int, most: int) -> list[Document]:
    """Some documents, each as likely as any other; the same ones every time.

    Args:
        most: letters, or tokens, that are looked at; 0: all.
    """
    rng = random.Random(0)
    kept: list[Document] = []
    seen = 0
    for number, document in enumerate(documents):
        if number < count:
            kept.append(document)
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = document
        seen += len(document)
        if 0 < most <= seen:
            break
    rng.shuffle(kept)
    return kept


def _pass(error: CorpusError) -> None:
    """The build itself will report it."""
