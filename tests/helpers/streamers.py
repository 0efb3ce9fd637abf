"""A streamer that records its input."""

from __future__ import annotations

import torch
from transformers.generation.streamers import BaseStreamer


class Collected(BaseStreamer):  # type: ignore[misc]
    """Records the tokens, the prompt first, and whether `end` was called."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True
