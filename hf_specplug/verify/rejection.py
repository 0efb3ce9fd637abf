"""Stochastic verification: drafts drawn at random are accepted or rejected at random.

This is recursive rejection sampling without replacement (Jeon et al. 2024, RSD, arXiv 2402.14160,
section 3; the multi-candidate scheme of STAND). Where the draft distribution is close to the
target's, it accepts more tokens than a comparison with one draw does. Every token still has exactly
the target's distribution. Because it uses other random numbers than plain `generate`, the output is
not the same for the same seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_specplug.drafters.contract import NO_NOISE, Noise
from hf_specplug.errors import OptionError
from hf_specplug.published import search_class
from hf_specplug.tree import DraftTree
from hf_specplug.verify.acceptance import Proposal, Verifier
from hf_specplug.verify.outputs import Outputs


class RejectionVerifier(Verifier):
    """Accepts drafted children by rejection sampling; greedy calls are verified as in `Verifier`.

    Takes the arguments of `Verifier`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._proposal: Proposal | None = None
        if self._sample:  # seeded from torch's generator, so that torch's seed decides the drafts
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
    """Pick one token distributed as `target`, if possible one of those drawn from `proposal`.

    Args:
        target: float64[V], probabilities.
        proposal: float64[V], the probabilities drawn from, up to a constant factor; changed in
            place.
        drawn: token ids, drawn one after the other from `proposal`, without replacement and by no
            other rule.

    Example:
        >>> pick(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), [0])
        1
    """
    for token in drawn:
        proposal /= proposal.sum()
        if float(torch.rand(())) * float(proposal[token]) < float(target[token]):
            return token
        rest = (target - proposal).clamp_(min=0.0)
        if float(rest.sum()) <= 0.0:  # nothing is left but rounding errors
            break
        target = rest / rest.sum()
        proposal[token] = 0.0
    return int(torch.multinomial(target, num_samples=1))


_VERIFIERS: dict[str, type[Verifier]] = {"seeded": Verifier, "rejection": RejectionVerifier}


def verifier_class(verification: str, published: str | None = None) -> type[Verifier]:
    """The verifier class of a `verification` option, "seeded" or "rejection".

    Raises:
        OptionError: the option has another value, or "rejection" is combined with a `published`
            method whose drafts are not drawn at random.
    """
    if verification not in _VERIFIERS:
        raise OptionError(f"verification must be one of {sorted(_VERIFIERS)}, not {verification!r}")
    if verification == "rejection" and not search_class(published).stochastic:
        raise OptionError(
            f'verification="rejection" needs drafts drawn at random, which published={published!r} '
            'does not make: use "seeded", which accepts as many of them'
        )
    return _VERIFIERS[verification]
