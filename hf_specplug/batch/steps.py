"""What plain `generate` calls after each step of a batch: stopping criteria and the streamer.

The rows of a drafted batch run ahead of one another. Once every row has come to a step, criteria
and streamer are called for it with what plain `generate` gives them: each step once, in order. A
row that has run past the step at which it ends is cut back to that step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import StoppingCriteriaList

from hf_specplug.hf import adapter, batches
from hf_specplug.hf.adapter import BaseStreamer
from hf_specplug.hf.call import Call
from hf_specplug.verify.lockstep import LockstepNoise
from hf_specplug.verify.row_acceptance import RowVerifier


class Steps:
    """The steps of a batch that all rows have taken.

    Args:
        call: the call.
        rows: all rows of the call, with no token yet.
        noise: the noise of the batch.
        criteria: all criteria, as `generate` prepared them.
        streamer: receives the tokens int64[N] of each step; None if there is no streamer.
    """

    def __init__(
        self,
        call: Call,
        rows: Sequence[RowVerifier],
        noise: LockstepNoise,
        criteria: StoppingCriteriaList,
        streamer: BaseStreamer | None,
    ) -> None:
        self._rows, self._noise = rows, noise
        self._criteria, self._streamer = criteria, streamer
        self._ids = call.input_ids
        self._count = 0
        self._unfinished = torch.ones_like(self._ids[:, 0])
        self._going = [True] * len(rows)  # the same, on the host
        self._pads = batches.pads(criteria)
        self._pad = self._ids.new_full((1, 1), adapter.pad_token(call))
        returned = rows[0].scores is not None and not self._pads
        self._scores: tuple[torch.Tensor, ...] | None = () if returned else None

    def follow(self) -> None:
        """Call criteria and streamer for each step that all rows have come to.

        Raises:
            Exception: what a criterion or the streamer raises. The random generator is then where
                plain `generate` leaves it.
        """
        while any(self._going) and all(row.emitted > self._count for row in self._needed()):
            self._advance()
            self._end_rows()

    def _needed(self) -> list[RowVerifier]:
        """The rows whose own tokens the next step has; the others are padded."""
        rows = zip(self._rows, self._going, strict=True)
        return [row for row, going in rows if going or not self._pads]

    def _advance(self) -> None:
        """Do what plain `generate` does once the tokens of a step have been picked."""
        place, needed = self._ids.shape[1], set(self._needed())
        tokens = torch.cat(
            [
                row.input_ids[:, place : place + 1] if row in needed else self._pad
                for row in self._rows
            ]
        )
        self._ids = torch.cat([self._ids, tokens], dim=-1)
        if self._scores is not None:
            known = [row.scores[self._count] for row in self._rows if row.scores is not None]
            self._scores += (torch.cat(known),)
        self._count += 1
        self._noise.resume(self._count)
        self._unfinished = self._unfinished & ~self._criteria(self._ids, self._scores)
        if self._streamer is not None:
            self._streamer.put(tokens[:, 0].cpu())

    def _end_rows(self) -> None:
        """End the rows that end at this step. Those that are not padded go on until all end."""
        self._going = [bool(going) for going in self._unfinished.tolist()]
        for row, going in zip(self._rows, self._going, strict=True):
            if not going and (self._pads or not any(self._going)):
                row.end(self._count)
