"""A streamer that keeps what it was given."""

from __future__ import annotations

import torch
from transformers.generation.streamers import BaseStreamer


class Collected(BaseStreamer):  # type: ignore[misc]
    """Keeps the tokens, the prompt first, and whether the end was told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True
