"""Batches of unequal prompts, and a drafter that knows the reference output of each row."""

from __future__ import annotations

from typing import Any

import torch

from hf_specplug.drafters.contract import Context
from tests.helpers.oracle import Replay, Wrong
from tests.helpers.zoo import TEXT

ENDS = {"eos_token_id": list(range(3, 9)), "pad_token_id": 0}
"""Stop tokens that a random model says every 16 tokens or so: rows end at different times."""


def batch(lengths: list[int], seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of `generate`: prompts of these lengths with some repetition, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros((len(lengths), max(lengths)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        text = torch.randint(TEXT.start, TEXT.stop, (length,), generator=generator)
        if length >= 12:
            text[-4:] = text[2:6]
        ids[row, -length:] = text
        mask[row, -length:] = 1
    return {"input_ids": ids, "attention_mask": mask}


class ReplayRows(Replay):
    """A `Replay` for each row of a batch, found by the row's prompt, which must be unique.

    Args:
        inputs: those of `generate`.
        output: int64[N, n] of plain `generate`.
        wrong: by row, where its drafts are wrong; rows that are not in it are always right.
        ranks: by row, its `rank`, if it is not that of `others`: the trees then differ in shape.
        start: the decoder's first tokens, if the inputs are an encoder's.
        others: those of `Replay`.
    """

    def __init__(
        self,
        inputs: dict[str, torch.Tensor],
        output: torch.Tensor,
        wrong: dict[int, Wrong] | None = None,
        ranks: dict[int, int] | None = None,
        start: list[int] | None = None,
        **others: Any,
    ) -> None:
        super().__init__([], **others)
        width = inputs["input_ids"].shape[1] if start is None else len(start)
        after = [] if start is None else [-1, *start]
        self.known = {}
        for row, (ids, mask) in enumerate(zip(*inputs.values(), strict=True)):
            place = (wrong or {}).get(row, lambda position: False)
            rank = (ranks or {}).get(row, self.rank)
            text = (*ids[mask == 1].tolist(), *after)
            self.known[text] = output[row, width:].tolist(), place, rank
        assert len(self.known) == len(output)

    def begin(self, context: Context) -> None:
        super().begin(context)
        self.reference, self.wrong, self.rank = self.known[tuple(context.tokens.tolist())]
