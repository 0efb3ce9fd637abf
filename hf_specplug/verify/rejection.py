"""Stochastic verification: drafts that were drawn are accepted or rejected at random.

Recursive rejection sampling without replacement (Jeon et al. 2024, RSD, arXiv 2402.14160, section
3; the multi-candidate scheme of STAND): it accepts more than a comparison with one draw, where a
draft's distribution is close to the target's, and each token is still distributed exactly as the
target says. It uses other random numbers than plain `generate`, so that it is not seed-identical.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_specplug.drafters.contract import NO_NOISE, Noise
from hf_specplug.errors import OptionError
from hf_specplug.tree import DraftTree
from hf_specplug.verify.acceptance import Proposal, Verifier
from hf_specplug.verify.outputs import Outputs


class RejectionVerifier(Verifier):
    """Accepts drafted children by rejection sampling; greedy calls are as ever.

    Args: those of `Verifier`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._proposal: Proposal | None = None
        if self._sample:  # seeded, so that a seed also decides the drafts
            self.generator = np.random.default_rng(int(torch.randint(1 << 62, (1,))))

    def noise(self) -> Noise:
        return NO_NOISE

    def accept(
        self, outputs: Outputs, tree: DraftTree, proposal: Proposal | None = None
    ) -> tuple[list[int], list[int]]:
        self._proposal = proposal if len(tree) else None
        return super().accept(outputs, tree)

    def _draw(self, probs: torch.Tensor, node: int) -> int:
        if self._proposal is None:
            return int(torch.multinomial(probs, num_samples=1))
        tokens, drafted_probs, drawn = self._proposal(node)
        proposal = torch.zeros_like(probs[0], dtype=torch.float64)
        candidates = torch.from_numpy(tokens).to(proposal.device, torch.int64)
        proposal[candidates] = torch.from_numpy(drafted_probs).to(proposal)
        return pick(probs[0].double(), proposal, tokens[: len(drawn)].tolist())


def pick(target: torch.Tensor, proposal: torch.Tensor, drawn: list[int]) -> int:
    """One token distributed as `target`, if possible one of those drawn from `proposal`.

    Args:
        target: float64[V], probabilities.
        proposal: float64[V], what was drawn from, up to a factor; changed.
        drawn: tokens, drawn one after the other without replacement, by no other rule than
            `proposal`.

    Example:
        >>> pick(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), [0])
        1
    """
    for token in drawn:
        proposal /= proposal.sum()
        if float(torch.rand(())) * float(proposal[token]) < float(target[token]):
            return token
        rest = (target - proposal).clamp_(min=0.0)
        if float(rest.sum()) <= 0.0:  # all that is left is rounding
            break
        target = rest / rest.sum()
        proposal[token] = 0.0
    return int(torch.multinomial(target, num_samples=1))


_VERIFIERS: dict[str, type[Verifier]] = {"seeded": Verifier, "rejection": RejectionVerifier}


def verifier_class(verification: str, published: str | None = None) -> type[Verifier]:
    """The verifier of a kind of verification.

    Raises:
        OptionError: there is no such kind, or the drafts of a `published` method do not suit it.
    """
    if verification not in _VERIFIERS:
        raise OptionError(f"verification must be one of {sorted(_VERIFIERS)}, not {verification!r}")
    if verification == "rejection" and published is not None:
        raise OptionError(
            f'verification="rejection" needs drafts drawn at random, which published={published!r} '
            "does not make"
        )
    return _VERIFIERS[verification]
