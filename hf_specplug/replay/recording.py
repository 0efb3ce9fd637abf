"""Recordings: texts with the model's likeliest next tokens, to be replayed without the model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hf_specplug.drafters.contract import TOP_K, Float32, Int32, TopK
from hf_specplug.errors import RecordingError

FORMAT = "hf_specplug recording 1"


@dataclass(frozen=True, slots=True)
class RecordedText:
    """One prompt with its answer.

    Attributes:
        task: the kind of text, for averages by task.
        name: unique in its recording.
        tokens: int32[n], token ids of prompt and answer.
        prompt_length: how many of them are the prompt.
        topk: [n, 8] ids and probabilities: the model's most likely tokens after each token.
        hidden: float16[len(answer) + 1, width], the model's hidden states at the last token of the
            prompt and at each token of the answer; None if they were not recorded.

    Example:
        >>> topk = TopK(np.zeros((3, 8), np.int32), np.zeros((3, 8), np.float32))
        >>> RecordedText("chat", "1", np.array([5, 6, 7], np.int32), 2, topk).answer.tolist()
        [7]
    """

    task: str
    name: str
    tokens: Int32
    prompt_length: int
    topk: TopK
    hidden: NDArray[np.float16] | None = None

    @property
    def answer(self) -> Int32:
        """int32[n - prompt_length], token ids."""
        return self.tokens[self.prompt_length :]

    def state(self, position: int) -> Float32 | None:
        """float32[width], the hidden state at a position (from the prompt's last token on)."""
        if self.hidden is None:
            return None
        state: Float32 = self.hidden[position - self.prompt_length + 1].astype(np.float32)
        return state


@dataclass(frozen=True)
class Recording:
    """Recorded texts of one model.

    Attributes:
        model: its name, as it was given.
        vocab_size: token ids are in [0, vocab_size).
        texts: in the order in which they are replayed.

    Example:
        >>> len(Recording("none", 100, []))
        0
    """

    model: str
    vocab_size: int
    texts: Sequence[RecordedText]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[RecordedText]:
        return iter(self.texts)

    @property
    def answer_tokens(self) -> int:
        """The number of tokens of all answers."""
        return sum(len(text.answer) for text in self.texts)

    def where(self, tasks: Sequence[str]) -> Recording:
        """The texts of some tasks, as a recording.

        Raises:
            RecordingError: the recording has no text of a task.
        """
        known = {text.task for text in self.texts}
        if missing := set(tasks) - known:
            raise RecordingError(f"no task {sorted(missing)} here; there are {sorted(known)}")
        return Recording(
            self.model, self.vocab_size, [text for text in self.texts if text.task in tasks]
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file. An interruption leaves no partial file at `path`."""
        texts = self.texts
        parts: dict[str, tuple[list[NDArray[Any]], NDArray[Any]]] = {
            "tokens": ([text.tokens for text in texts], np.zeros(0, np.int32)),
            "topk_ids": ([text.topk.ids for text in texts], np.zeros((0, TOP_K), np.int32)),
            "topk_probs": (
                [text.topk.probs.astype(np.float16) for text in texts],
                np.zeros((0, TOP_K), np.float16),
            ),
        }
        tensors = {key: np.concatenate([*arrays, none]) for key, (arrays, none) in parts.items()}
        hidden = [text.hidden for text in texts if text.hidden is not None]
        if hidden and len(hidden) == len(texts):
            tensors["hidden"] = np.concatenate(hidden)
        tensors["lengths"] = np.array([len(text.tokens) for text in texts], np.int64)
        tensors["prompt_lengths"] = np.array([text.prompt_length for text in texts], np.int64)
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "vocab_size": str(self.vocab_size),
            "tasks": json.dumps([text.task for text in texts]),
            "names": json.dumps([text.name for text in texts]),
        }
        partial = f"{os.fspath(path)}.partial"
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that `specplug record` or `Recording.save` wrote.

    Raises:
        RecordingError: the file is something else, or damaged.
        FileNotFoundError: the file does not exist.

    Example:
        >>> load("my.safetensors").answer_tokens  # doctest: +SKIP
        20480
    """
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise RecordingError(
                    f"{path} is a safetensors file, but not a recording; "
                    f"make one with `specplug record`"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _assemble(tensors, metadata)
    except SafetensorError as error:
        raise RecordingError(f"{path} cannot be read as a recording: {error}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise RecordingError(f"{path} is a damaged recording: {error}") from error


def _assemble(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Recording:
    tasks, names = json.loads(metadata["tasks"]), json.loads(metadata["names"])
    vocab_size = int(metadata["vocab_size"])
    tokens, ids = tensors["tokens"].astype(np.int32), tensors["topk_ids"].astype(np.int32)
    probs = tensors["topk_probs"].astype(np.float32)
    lengths, prompts = tensors["lengths"].tolist(), tensors["prompt_lengths"].tolist()
    if not len(tasks) == len(names) == len(lengths) == len(prompts) or sum(lengths) != len(tokens):
        raise ValueError("the lengths of its texts do not add up")
    if ids.shape != (len(tokens), TOP_K) or probs.shape != ids.shape:
        raise ValueError(f"top-k rows are {ids.shape} and {probs.shape}, not {len(tokens), TOP_K}")
    if len(tokens) and not (ids.min() >= -1 and max(ids.max(), tokens.max()) < vocab_size):
        raise ValueError(f"token ids outside the vocabulary of {vocab_size}")
    states = len(tokens) - sum(prompts) + len(prompts)  # of each text's answer, and one before
    hidden = tensors.get("hidden")
    if hidden is not None and (
        hidden.dtype != np.float16 or hidden.ndim != 2 or len(hidden) != states
    ):
        raise ValueError(f"hidden states are {hidden.dtype}{list(hidden.shape)}, not {states} rows")
    texts, start, state = [], 0, 0
    for task, name, length, prompt in zip(tasks, names, lengths, prompts, strict=True):
        if not 0 < prompt <= length:
            raise ValueError(f"a prompt of {prompt} tokens in a text of {length} tokens")
        part, count = slice(start, start + length), length - prompt + 1
        topk = TopK(ids[part], probs[part])
        of_text = None if hidden is None else hidden[state : state + count]
        texts.append(RecordedText(str(task), str(name), tokens[part], prompt, topk, of_text))
        start, state = start + length, state + count
    return Recording(metadata["model"], vocab_size, texts)
