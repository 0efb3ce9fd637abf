"""Acceptance in the rows of a batch: each has its own tree, and its own path through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from hf_specplug.drafters.contract import NO_NOISE, Noise
from hf_specplug.hf.batches import BY_LOGITS, hold_rows
from hf_specplug.tree import DraftTree
from hf_specplug.verify.acceptance import Descent, Verifier
from hf_specplug.verify.lockstep import LockstepNoise
from hf_specplug.verify.outputs import Outputs


class RowVerifier(Verifier):
    """A `Verifier` of one row of a batch.

    Args:
        row: its index in the batch.
        noise: the noise of the batch, if it is sampled.
        input_ids: int64[1, n], the row's prompt, padding on its left included.
        processors, config: those of the batch.
        criteria: those that end a row alone.

    Attributes:
        said: its tokens after the prompt, without padding.
    """

    def __init__(
        self,
        row: int,
        noise: LockstepNoise,
        input_ids: torch.Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
    ) -> None:
        super().__init__(input_ids, processors, criteria, config, None)
        self._alone = self._greedy or hold_rows(processors)
        self._by_text = not {type(processor) for processor in processors} <= BY_LOGITS
        self._row, self._shared = row, noise
        self._prompt = input_ids.shape[1]
        self.said: list[int] = []

    def noise(self) -> Noise:
        return self._shared.ahead(self._row) if self._sample else NO_NOISE

    def _emit(self, token: int) -> None:
        self.said.append(token)
        super()._emit(token)
        if self.finished:
            self._shared.leave(self._row)

    def end(self, count: int) -> None:
        """End the row after its first `count` tokens at most; drop those beyond."""
        if not self.finished:
            self.finished = True
            self._shared.leave(self._row)
        self._cut(count)

    def go_on(self, text: torch.Tensor) -> None:
        """Continue from `text`, int64[n], which is not longer than the row's; drop the rest."""
        self._cut(len(text) - self._prompt)
        self.input_ids.copy_(text)
        self.said = text[self._prompt :].tolist()
        self.finished = False

    def _cut(self, count: int) -> None:
        if len(self.said) > count:
            _ = self.input_ids  # writes all tokens to the buffer
            self._length = self._prompt + count
            del self.said[count:]
            self.scores = None if self.scores is None else self.scores[:count]
            self.logits = None if self.logits is None else self.logits[:count]

    def pad(self, outputs: Outputs, token: int, count: int) -> None:
        """Append padding to a row that has ended, as plain `generate` does.

        Args:
            outputs: the target's outputs at the tokens before each padding token, in order.
            token: the padding token.
            count: number of padding tokens.
        """
        for node in range(count):
            if self.scores is not None or self.logits is not None:
                self._process(outputs, node)
            self._new.append(token)
            self._length += 1

    def _draw(self, probs: torch.Tensor, node: int) -> int:
        return self._shared.pick([self._row], [len(self.said)], probs)[0]


def accept_rows(
    rows: Sequence[RowVerifier], outputs: Sequence[Outputs], trees: Sequence[DraftTree]
) -> list[tuple[list[int], list[int]]]:
    """Accept in several rows of a batch, as `Verifier.accept` does in one.

    The next tokens of all rows are picked together where the processors do not look at the text,
    or the texts are equally long: one by one, picking takes as long as a small model's forward
    pass.

    Args:
        rows: verifiers of rows that have not ended.
        outputs, trees: as for `Verifier.accept`, one per row.

    Returns:
        What `Verifier.accept` returns, one per row.
    """
    if rows[0]._alone:
        given = zip(rows, outputs, trees, strict=True)
        return [row.accept(own, tree) for row, own, tree in given]
    descents = [Descent(tree) for tree in trees]
    going = list(zip(rows, outputs, descents, strict=True))
    while going:
        together: dict[int, list[_Going]] = defaultdict(list)
        for each in going:
            together[each[0]._length if each[0]._by_text else 0].append(each)
        for some in together.values():
            for (row, _, descent), token in zip(some, _pick_rows(some), strict=True):
                row._emit(token)
                descent.take(token)
        going = [each for each in going if each[2].node >= 0 and not each[0].finished]
    return [(descent.visited, descent.emitted) for descent in descents]


_Going = tuple[RowVerifier, Outputs, Descent]


def _pick_rows(going: Sequence[_Going]) -> list[int]:
    """Pick the next token of each row, as `Verifier._pick` does in one."""
    first = going[0][0]
    logits = torch.stack([outputs.logits[descent.node] for _, outputs, descent in going])
    raw = logits.to(dtype=torch.float32, device=first._device)
    texts = raw.new_empty((len(going), 0), dtype=torch.int64)
    if first._by_text:
        texts = torch.cat([row.input_ids for row, _, _ in going])
    scores: torch.Tensor = first._processors(texts, raw)
    for place, (row, _, _) in enumerate(going):
        row._keep(scores[place : place + 1], raw[place : place + 1])
    if not first._sample:
        return [int(token) for token in torch.argmax(scores, dim=-1).tolist()]
    numbers = [row._row for row, _, _ in going]
    steps = [len(row.said) for row, _, _ in going]
    return first._shared.pick(numbers, steps, torch.nn.functional.softmax(scores, dim=-1))
