"""Known sampling noise: the frequent tokens that the noise of a position favours.

`torch.multinomial` picks the token of highest p / e, and the noise e of the next positions is known
when sampling is seeded (see `hf_specplug.verify.noise`). At a high temperature no retrieval can
propose much of what is sampled. But of the tokens that the model says often, the noise favours only
a few at each position, and these are worth a node. The output does not depend on them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Noise, Step
from hf_specplug.drafters.frequency import counts_of
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.kernels import gumbel as kernels

_PROMPT = 0.3  # weight of a token of the prompt
_EMITTED = 1.0


@register
class GumbelDrafter(Drafter):
    """Proposes the tokens that the known noise of a position favours; none if noise is unknown.

    The frequency of each token, in any context, is learned from the emitted tokens and from the
    probabilities of the target's likeliest tokens. It is kept across requests: 8 bytes per token of
    the vocabulary.

    Evidence: the rank of p / e among the tokens of a position, and ln(p / e).

    Example:
        `the` is 5 % of all tokens. At a position where its noise e is 0.01, and that of other
        frequent tokens about 1, it is proposed first.
    """

    name: ClassVar[str] = "gumbel"
    needs: ClassVar[frozenset[str]] = frozenset({"topk", "noise"})

    def __init__(self) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._forget(0)
        self._allocate(0)

    def _forget(self, vocab_size: int) -> None:
        self.weights = np.zeros(vocab_size)
        self._total = np.zeros(1)  # the sum of the weights, an array so that copies share it

    def _allocate(self, positions: int) -> None:
        """Buffers for the results of `favoured`, one row for each row of noise."""
        self._tokens = np.empty((positions, kernels.FAVOURED), np.int32)
        self._buckets = np.empty((positions, kernels.FAVOURED), np.int32)
        self._marks = np.full(positions, np.nan)
        self._out = np.empty((0, 3), np.int32)

    def begin(self, context: Context) -> None:
        if len(self.weights) != context.vocab_size:
            self._forget(context.vocab_size)
        self._marks[:] = np.nan  # the weights have changed, even if the noise is the same
        kernels.count(self.weights, self._total, context.tokens, _PROMPT)

    def for_another_call(self) -> GumbelDrafter:
        """A drafter that shares the frequencies, until one of the two gets another vocabulary."""
        twin = self._sharing()
        twin._allocate(0)
        return twin

    def observe(self, step: Step) -> None:
        kernels.count(self.weights, self._total, step.emitted, _EMITTED)
        if step.topk is None:
            return
        rows = step.visited
        if not len(rows):  # a prompt: all of its rows
            rows = np.arange(len(step.topk.ids), dtype=np.int32)
            rows.flags.writeable = False  # as in a Step: of other arrays kernels are compiled again
        kernels.count_likely(self.weights, self._total, step.topk.ids, step.topk.probs, rows)

    def favoured(self, noise: Noise) -> tuple[NDArray[Any], ...]:
        """For `kernels.tables`: the weights, and room for what this noise favours."""
        if len(self._marks) != len(noise[0]):
            self._allocate(len(noise[0]))
        return self.weights, self._total, self._marks, self._tokens, self._buckets

    def expand(self, frontier: Frontier) -> Int32:
        noise, first = frontier.noise
        if not len(noise):
            return self._out[:0]
        if len(self._marks) != len(noise):
            self._allocate(len(noise))
        if len(self._out) < len(frontier.nodes) * kernels.FAVOURED:
            self._out = np.empty((2 * len(frontier.nodes) * kernels.FAVOURED, 3), np.int32)
        rows = kernels.expand(
            self.weights,
            float(self._total[0]),
            noise,
            first,
            frontier.pool,
            frontier.nodes,
            self._marks,
            self._tokens,
            self._buckets,
            self._out,
        )
        return self._out[:rows]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """`weights` float64[V]: the frequency of each token, emitted or likely."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        weights = counts_of(self.name, state)
        self.weights, self._total = weights.copy(), np.array([weights.sum()])
