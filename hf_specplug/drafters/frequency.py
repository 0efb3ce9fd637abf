"""Order 0: the tokens that are frequent lately, whatever precedes them.

Text compressors mix this humblest of contexts with all longer ones (Cleary and Witten 1984, PPM;
Mahoney 2005, PAQ). Where no longer context knows the text, most of the accepted tokens that a draft
can have are articles, commas and line breaks.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Step
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.errors import StateError
from hf_specplug.kernels import frequency as kernels

DECAY = 0.999
"""Each token multiplies the weight of all earlier ones by this: half is left after 693 tokens."""

PROMPT = 300
"""The last so many tokens of a prompt are counted."""


@register
class FrequencyDrafter(Drafter):
    """Proposes, after the accepted text only, the tokens of highest decayed count.

    The counts of prompts and outputs are kept across requests: 8 bytes per token of the vocabulary.

    Evidence: the token's share of all counts, and its rank.

    Example:
        after `the cat , the dog , the` it proposes `the` (3 of 7), `,` (2 of 7), `dog`, `cat`.
    """

    name: ClassVar[str] = "frequency"
    rounds: ClassVar[int | None] = 1

    def __init__(self) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._out = np.empty((kernels.RANKS, 3), np.int32)
        self._forget(0)

    def _forget(self, vocab_size: int) -> None:
        self.weights = np.zeros(vocab_size)
        self._scale = np.array([1.0, 0.0])
        self._top = np.full(kernels.RANKS, -1, np.int32)

    def begin(self, context: Context) -> None:
        """Start a new request; the counts are kept unless the vocabulary size changes."""
        if len(self.weights) != context.vocab_size:
            self._forget(context.vocab_size)
        self._count(context.tokens[-PROMPT:])

    def for_another_call(self) -> FrequencyDrafter:
        """A drafter that shares the counts, until one of the two gets another vocabulary."""
        twin = self._sharing()
        twin._out = np.empty_like(self._out)
        return twin

    def observe(self, step: Step) -> None:
        self._count(step.emitted)

    def _count(self, tokens: Int32) -> None:
        kernels.count(self.weights, self._scale, self._top, tokens, DECAY)

    @property
    def counts(self) -> tuple[NDArray[np.float64], NDArray[np.float64], Int32]:
        """For `kernels.tables`: the counts."""
        return self.weights, self._scale, self._top

    def expand(self, frontier: Frontier) -> Int32:
        rows = kernels.expand(self.weights, self._scale, self._top, self._out)
        return self._out[:rows]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """`weights` float64[V]: the decayed count of each token; 1 for one that just occurred."""
        return {"weights": self.weights / self._scale[0]}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        weights = counts_of(self.name, state)
        self._forget(len(weights))
        self.weights[:] = weights
        self._scale[1] = weights.sum()
        first = np.argsort(-weights, kind="stable")[: kernels.RANKS]
        first = first[weights[first] > 0]
        self._top[: len(first)] = first


def counts_of(name: str, state: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The array `weights` float64[V] of a saved state: a finite count for each token.

    Args:
        name: the drafter's, for errors.

    Raises:
        StateError: the state does not hold such counts.
    """
    weights = state.get("weights")
    if weights is None or set(state) != {"weights"}:
        raise StateError(f"the state of {name!r} has the array weights, not {sorted(state)}")
    if weights.dtype != np.float64 or weights.ndim != 1:
        raise StateError(f"weights must be float64[V], not {weights.dtype}{list(weights.shape)}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise StateError("weights must be finite and not negative")
    return weights
