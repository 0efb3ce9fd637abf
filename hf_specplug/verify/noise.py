"""Noise lookahead: the random numbers that seeded sampling will use are known in advance.

`torch.multinomial` picks argmax p / e, where e are exponential random numbers of the generator (the
Gumbel-max trick). A copy of the generator yields these numbers for the coming positions, and thus
the candidates that they favour there. The mixer takes this as evidence. The generator itself is
only read, so the output stays bit-identical to plain sampling with the same seed.
"""

from __future__ import annotations

from collections import deque
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

POSITIONS = 8
"""Number of positions to look ahead; deeper nodes are rarely reached when sampling."""


class NoiseLookahead:
    """The sampling noise of the next positions, each drawn once from a copy of the generator.

    Args:
        device: the device of the probabilities that are sampled from.
        width: the number of these probabilities (the vocabulary size).

    Example:
        >>> rows, first = NoiseLookahead(torch.device("cpu"), 10).ahead()
        >>> rows.shape, first
        ((8, 10), 0)
    """

    def __init__(self, device: torch.device, width: int) -> None:
        self._device = device
        self._twin = torch.Generator(device)
        self._rows = np.empty((POSITIONS, width))
        self._first = 0
        self._places: deque[torch.Tensor] = deque()  # the generator's state before each row

    def ahead(self) -> tuple[NDArray[np.float64], int]:
        """Numbers u of the coming positions; the exponential noise of a token is -ln(1 - u).

        Returns:
            (float64[POSITIONS, width] in [0, 1), a ring buffer; the row of the next pick). Valid
            until the next call.
        """
        state = generator_state(self._device)
        while self._places and not torch.equal(self._places[0], state):
            self._places.popleft()
            self._first = (self._first + 1) % POSITIONS
        if not self._places:
            self._twin.set_state(state)
        while len(self._places) < POSITIONS:
            row = (self._first + len(self._places)) % POSITIONS
            self._places.append(self._twin.get_state())
            self._rows[row] = draw(self._twin, self._rows.shape[1])
        return self._rows, self._first


def draw(generator: torch.Generator, width: int) -> NDArray[np.float64]:
    """float64[width], the numbers u that the next pick of `generator` uses."""
    if generator.device.type == "cpu":  # skipping the logarithms takes a third of the time
        return torch.rand(width, dtype=torch.float64, generator=generator).numpy()
    noise = torch.empty(width, device=generator.device).exponential_(1, generator=generator)
    return (-torch.expm1(-noise.double())).cpu().numpy()


@cache
def known(device: torch.device, width: int) -> bool:
    """Whether `draw` predicts the picks of `torch.multinomial` on this device, by a test run."""
    try:
        generator_state(device)
        real, twin = torch.Generator(device), torch.Generator(device)
        logits = torch.linspace(0.0, 2.0, width, device=device)
        for seed in range(4):
            real.manual_seed(seed)
            twin.manual_seed(seed)
            probs = torch.softmax(logits.roll(seed * (width // 4)), dim=-1)[None]
            for _ in range(2):
                foreseen = -np.log1p(-draw(twin, width))
                favoured = probs[0].cpu().double().numpy() / foreseen
                token = int(torch.multinomial(probs, 1, generator=real))
                # a pick that rounding decides is no mismatch
                if favoured[token] < 0.999 * favoured.max():
                    return False
                if not torch.equal(real.get_state(), twin.get_state()):
                    return False
    except Exception:  # the device has no such generators: sampling works without known noise
        return False
    return True


def generator_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that `torch.multinomial` uses by default on a device."""
    if device.type == "cpu":
        return torch.get_rng_state()
    state: torch.Tensor = getattr(torch, device.type).get_rng_state(device)
    return state


def set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    """Set the state that `generator_state` returns."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        getattr(torch, device.type).set_rng_state(state, device)
