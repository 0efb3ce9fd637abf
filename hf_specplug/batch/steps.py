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
    """The steps of a batch that all rows have come to.

    Args:
        call: the call.
        rows: all rows of the call, with no token yet.
        noise: the noise of the batch.
        criteria: all criteria, as `generate` prepared them.
        streamer: receives the tokens int64[N] of each step; None if there is no streamer.

    Attributes:
        ids: int64[N, n], the texts up to the last of these steps.
        drafts: False once what is called changes what comes next: nothing may be drafted then.
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
        self.ids = call.input_ids
        self.drafts = True
        self._count = 0
        self._unfinished = torch.ones_like(self.ids[:, 0])
        self._going = [True] * len(rows)  # rows that are not padded at the next step
        self._pads = batches.pads(criteria)
        self._pad = adapter.pad_token(call)
        returned = rows[0].scores is not None and not self._pads
        self._scores: tuple[torch.Tensor, ...] | None = () if returned else None

    def follow(self) -> bool:
        """Call criteria and streamer for each step that all rows have come to.

        Returns:
            Whether all rows were set back to the last of these steps.

        Raises:
            Exception: what a criterion or the streamer raises. The random generator is then where
                plain `generate` leaves it.
        """
        while any(self._going) and all(len(row.said) > self._count for row in self._live()):
            changed = self._advance()
            self._end_rows()
            if changed and any(self._going):
                self._set_back()
                return True
        return False

    def _live(self) -> list[RowVerifier]:
        rows = zip(self._rows, self._going, strict=True)
        return [row for row, going in rows if going]

    def _advance(self) -> bool:
        """Do what plain `generate` does once the tokens of a step have been picked.

        Returns:
            Whether what was called has written into the texts, or drawn random numbers while the
            tokens are sampled.
        """
        rows = zip(self._rows, self._going, strict=True)
        picked = [row.said[self._count] if going else self._pad for row, going in rows]
        tokens = torch.tensor(picked, device=self.ids.device)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
        if self._scores is not None:
            known = [row.scores[self._count] for row in self._rows if row.scores is not None]
            self._scores += (torch.cat(known),)
        self._count += 1
        self._noise.resume(self._count)
        given = self.ids.clone()
        self._unfinished = self._unfinished & ~self._criteria(self.ids, self._scores)
        if self._streamer is not None:
            self._streamer.put(tokens.cpu())
        return self._noise.interrupted(self._count) or not torch.equal(self.ids, given)

    def _end_rows(self) -> None:
        """End the rows that end at this step. Where none is padded, they go on until all end."""
        unfinished = [bool(row) for row in self._unfinished.tolist()]
        if self._pads or not any(unfinished):
            self._going = unfinished
        for row, going in zip(self._rows, self._going, strict=True):
            if not going:
                row.end(self._count)

    def _set_back(self) -> None:
        """Let the rows go on from the texts of this step, one step at a time."""
        self.drafts = False
        live = [index for index, going in enumerate(self._going) if going]
        for index in live:
            self._rows[index].go_on(self.ids[index])
        self._noise.restart(self._count, live)
