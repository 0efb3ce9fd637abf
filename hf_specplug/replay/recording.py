"""Recordings: texts with the target's likeliest next tokens, to be replayed without the target."""

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
        task: what kind of text it is, for averages by task.
        name: unique in its recording.
        tokens: int32[n], prompt and answer.
        prompt_length: how many of them are the prompt.
        topk: rows for all n tokens: what the target found likely after each.
        hidden: float16[len(answer) + 1, width], the target's states at the prompt's last token and
            at those of the answer; None if they were not recorded.

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
        """int32[n - prompt_length]."""
        return self.tokens[self.prompt_length :]

    def state(self, place: int) -> Float32 | None:
        """float32[width], the target's state at a token from the prompt's last one on."""
        if self.hidden is None:
            return None
        state: Float32 = self.hidden[place - self.prompt_length + 1].astype(np.float32)
        return state


@dataclass(frozen=True)
class Recording:
    """Traces of one target.

    Attributes:
        model: its name, as it was given.
        vocab_size: ids are in [0, vocab_size).
        traces: in the order in which they are to be replayed.
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
        """How many tokens a replay generates."""
        return sum(len(trace.answer) for trace in self.texts)

    def where(self, tasks: Sequence[str]) -> Recording:
        """Only the traces of some tasks.

        Raises:
            RecordingError: a task that the recording does not have.
        """
        known = {trace.task for trace in self.texts}
        if missing := set(tasks) - known:
            raise RecordingError(f"no task {sorted(missing)} here; there are {sorted(known)}")
        return Recording(
            self.model, self.vocab_size, [trace for trace in self.texts if trace.task in tasks]
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears whole or not at all."""
        traces = self.texts
        parts: dict[str, tuple[list[NDArray[Any]], NDArray[Any]]] = {
            "tokens": ([trace.tokens for trace in traces], np.zeros(0, np.int32)),
            "topk_ids": ([trace.topk.ids for trace in traces], np.zeros((0, TOP_K), np.int32)),
            "topk_probs": (
                [trace.topk.probs.astype(np.float16) for trace in traces],
                np.zeros((0, TOP_K), np.float16),
            ),
        }
        tensors = {key: np.concatenate([*found, none]) for key, (found, none) in parts.items()}
        if traces and all(trace.hidden is not None for trace in traces):
            tensors["hidden"] = np.concatenate([trace.hidden for trace in traces])
        tensors["lengths"] = np.array([len(trace.tokens) for trace in traces], np.int64)
        tensors["prompt_lengths"] = np.array([trace.prompt_length for trace in traces], np.int64)
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "vocab_size": str(self.vocab_size),
            "tasks": json.dumps([trace.task for trace in self.texts]),
            "names": json.dumps([trace.name for trace in self.texts]),
        }
        partial = f"{os.fspath(path)}.partial"
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)


def load(path: str | os.PathLike[str]) -> Recording:
    """Read what `Recording.save` wrote.

    Raises:
        RecordingError: the file is something else, or its parts do not fit together.
        FileNotFoundError: there is no such file.
    """
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise RecordingError(
                    f"{path} is a safetensors file, but no recording; "
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
        raise ValueError("the lengths of its traces do not add up")
    if ids.shape != (len(tokens), TOP_K) or probs.shape != ids.shape:
        raise ValueError(f"rows are {ids.shape} and {probs.shape}, not {(len(tokens), TOP_K)}")
    if len(tokens) and not (ids.min() >= -1 and max(ids.max(), tokens.max()) < vocab_size):
        raise ValueError(f"ids outside the vocabulary of {vocab_size}")
    hidden, seen = tensors.get("hidden"), 0
    if hidden is not None and (
        hidden.dtype != np.float16
        or hidden.ndim != 2
        or len(hidden) != len(tokens) - sum(prompts) + len(prompts)
    ):
        raise ValueError(f"states are {hidden.dtype}{list(hidden.shape)}, not one for each answer")
    traces, start = [], 0
    for task, name, length, prompt in zip(tasks, names, lengths, prompts, strict=True):
        if not 0 < prompt <= length:
            raise ValueError(f"a prompt of {prompt} in a text of {length} tokens")
        part = slice(start, start + length)
        topk = TopK(ids[part], probs[part])
        states = None if hidden is None else hidden[seen : seen + length - prompt + 1]
        traces.append(RecordedText(str(task), str(name), tokens[part], prompt, topk, states))
        start += length
        seen += length - prompt + 1
    return Recording(metadata["model"], vocab_size, traces)
