"""A model's hidden states after the tokens of a corpus, for `specplug build --kind dense`."""

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
from hf_specplug.datastore.building.executors import tokenize
from hf_specplug.datastore.building.leave_out import LeaveOut
from hf_specplug.datastore.kinds.contract import Arrays
from hf_specplug.datastore.kinds.dense import DenseIndex
from hf_specplug.datastore.kinds.projection import DIMS, Float32, fit_projection, project
from hf_specplug.errors import CorpusError, OptionError
from hf_specplug.hf import loading
from hf_specplug.hf.hidden_states import LAST, HiddenStateHook, Stop, rows, signature

WINDOW = 1024
"""Tokens of a long document in one forward pass, if the model supports as many."""

CONTEXT = 256
"""Tokens of the previous window that are read again as context."""

EMBEDDING_SHARD_TOKENS = 1 << 17
"""Tokens of a shard during a build: an interruption loses what is not in a shard yet."""

_SAMPLE_DOCUMENTS = 2048  # documents that the projection is fitted to
_SAMPLE_TOKENS = 1 << 16  # tokens of these, together
_PIECE_TOKENS = 512  # tokens of each
_MAX_LETTERS = 8  # letters of a token; it rarely has more
_BATCH_TOKENS = 8192  # tokens of a forward pass, padding included

_Window = tuple[NDArray[np.int64], int, int]
"""Token ids; the first one whose state is wanted; the position of that one in the shard."""


class Embedding:
    """Builds the index of a shard from hidden states: an `executors.IndexBuilder`.

    A worker process loads the model once.

    Args:
        model: folder or Hub name of a decoder-only model.
        layer: decoder layer, from 0; -1: the last one, as the output embedding reads it.
        transform: projection of an existing datastore. Without one, `fit` or the first shard
            makes it.
        alone: whether all shards are indexed in this process.

    Attributes:
        runs_model: True; see `executors.IndexBuilder`.
        transform: the projection float32[width + 1, dims], None before it is fitted.

    Raises:
        ModelError: the model cannot be loaded.
        OptionError: it has no such layer, or has an encoder.

    Example:
        >>> embedding = Embedding("./my-model")  # doctest: +SKIP
        >>> arrays = embedding(tokens, vocab)  # int[n], each document followed by the id vocab
    """

    runs_model = True

    def __init__(
        self,
        model: str,
        layer: int = LAST,
        transform: Float32 | None = None,
        alone: bool = True,
    ) -> None:
        self._name, self._layer, self.transform, self._alone = model, layer, transform, alone
        HiddenStateHook(load_model(model), layer)

    @property
    def dims(self) -> int:
        """Dimensions of a vector."""
        config = load_model(self._name).config.get_text_config(decoder=True)
        return min(DIMS, int(config.hidden_size))

    def settings(self, index: str) -> dict[str, Any]:
        """The settings of the manifest; `index` is a FAISS factory string or "auto"."""
        model = {"name": self._name, "hash": signature(load_model(self._name))}
        return {"model": model, "layer": self._layer, "metric": "inner_product", "index": index}

    def fit(
        self,
        corpus: Corpus,
        tokenizer: Any,
        max_tokens: int = 0,
        leave_out: LeaveOut | None = None,
    ) -> None:
        """Fit the projection to a sample of documents from the whole corpus, unless there is one.

        The corpus is read once more for this. If it cannot be read twice, or its texts are not
        those that will be indexed, the projection is fitted to the first shard instead.

        Args:
            corpus: the documents.
            tokenizer: the model's tokenizer.
            max_tokens: tokens of the corpus that are indexed; 0: all.
            leave_out: finds the documents that are not indexed.

        Raises:
            CorpusError: the first shard cannot be used, since several processes make shards.
        """
        if self.transform is not None:
            return
        if not corpus.repeatable:
            if not self._alone:
                raise CorpusError(
                    "the projection must be fitted before workers start, and standard input can be "
                    "read only once: give files instead, or use --engine local"
                )
            return
        longest = min(_PIECE_TOKENS, _longest(load_model(self._name)))
        documents = corpus.documents(_ignore)
        if leave_out is not None:
            documents = (each for each in documents if not leave_out.matches(each))
        pieces = _sampled(documents, _SAMPLE_DOCUMENTS, max_tokens * _MAX_LETTERS)
        texts = tokenize(tokenizer, [piece[: _MAX_LETTERS * longest] for piece in pieces])
        windows = [(text[:longest].astype(np.int64), 0, 0) for text in texts if len(text)]
        enough = (
            np.searchsorted(np.cumsum([len(window[0]) for window in windows]), _SAMPLE_TOKENS) + 1
        )
        states = [found for _, found in self._states(windows[:enough])]
        if states:
            self.transform = fit_projection(np.concatenate(states))

    @staticmethod
    def release() -> None:
        """Free the memory of the model. It is loaded again when it is needed."""
        load_model.cache_clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __call__(self, tokens: NDArray[Any], vocab: int) -> Arrays:
        windows = list(_windows(tokens, vocab, _longest(load_model(self._name))))
        if self.transform is None:
            states = [found for _, found in self._states(windows[: _SAMPLE_TOKENS // CONTEXT])]
            self.transform = fit_projection(np.concatenate(states))
        vectors = np.zeros((len(tokens), self.transform.shape[1]), np.float32)
        for place, found in self._states(windows):
            vectors[place : place + len(found)] = project(found, self.transform)
        return DenseIndex.from_vectors(tokens, vectors, self.transform, vocab)

    def state(self, tokens: NDArray[Any]) -> Float32:
        """The hidden state after the last of some tokens: float32[width]."""
        ((_, states),) = self._states([(tokens.astype(np.int64), len(tokens) - 1, 0)])
        last: Float32 = states[0]
        return last

    def _states(self, windows: list[_Window]) -> Iterator[tuple[int, Float32]]:
        """(position in the shard, states float32[_, width]) of the wanted part of each window."""
        model = load_model(self._name)
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
def load_model(name: str) -> Any:
    """A decoder-only model on the fastest device and in the fastest dtype."""
    if AutoConfig.from_pretrained(name).is_encoder_decoder:
        raise OptionError(f"{name} has an encoder: dense datastores support decoder-only models")
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    except ValueError as error:
        raise OptionError(f"{name} is not a causal language model: {error}") from error
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
    """The documents of a shard; long ones in overlapping windows."""
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
    """Windows in batches of similar length."""
    batch: list[_Window] = []
    for window in sorted(windows, key=lambda window: len(window[0])):
        if batch and (len(batch) + 1) * len(window[0]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _sampled(documents: Iterator[Document], count: int, most: int) -> list[Document]:
    """A uniform random sample of documents (reservoir sampling), the same every time.

    Args:
        documents: what to choose from.
        count: size of the sample.
        most: letters (or tokens, if they are known) to read at most; 0: all.
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


def _ignore(error: CorpusError) -> None:
    """The build reports the error later."""
