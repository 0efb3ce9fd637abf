"""Sampling the rows of a batch from the random numbers that plain `generate` draws in lockstep.

Plain `generate` calls `torch.multinomial` once per step for all N rows: it draws exponential noise
[N, V] and picks argmax p / noise in each row (the Gumbel-max trick). Here the rows reach a step at
different times. The first row that needs a step draws its noise from the generator; the others take
their part of it later. When the last row ends, the generator is where plain `generate` leaves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.drafters.contract import NO_NOISE, Noise
from hf_specplug.verify.noise import POSITIONS, generator_state, set_generator_state

HELD = 1 << 28
"""Bytes of noise that are kept for rows that have not reached its step yet. Beyond that, the noise
of the latest steps is dropped. A row that gets there draws it again, from the generator's state
before that step."""

_BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


class LockstepNoise:
    """The sampling noise of a batch, by step and row.

    Args:
        device: the device of the probabilities.
        rows: number of rows of the batch.
        held: number of bytes to keep; the noise that rows need next is kept in any case.
        generator: draws the noise; by default the one that `torch.multinomial` uses by default.

    Example:
        >>> noise = LockstepNoise(torch.device("cpu"), rows=2)
        >>> noise.pick([1], [0], torch.tensor([[0.0, 1.0]]))
        [1]
    """

    def __init__(
        self,
        device: torch.device,
        rows: int,
        held: int = HELD,
        generator: torch.Generator | None = None,
    ) -> None:
        self._device, self._rows, self._bytes = device, rows, held
        self._generator = generator
        self._states: list[torch.Tensor] = []  # the generator's state before each step
        self._held: dict[int, torch.Tensor] = {}  # step -> float32[N, V]
        self._twin = torch.Generator(device)
        self._next = dict.fromkeys(range(rows), 0)  # the next step of each row that has not ended
        self._picked = 0  # steps that some row has picked
        self._rings: dict[int, tuple[NDArray[np.float64], int]] = {}
        self._width = 0

    def pick(self, rows: Sequence[int], steps: Sequence[int], probs: torch.Tensor) -> list[int]:
        """The tokens of some rows, each at a step of its own, as multinomial picks them.

        Args:
            rows, steps: R numbers each.
            probs: float32[R, V].

        Raises:
            RuntimeError: the probabilities are not finite; it is raised by `torch.multinomial`.
        """
        self._width = probs.shape[-1]
        places = zip(rows, steps, strict=True)
        noise = torch.stack([self._of_step(step)[row] for row, step in places])
        tokens = torch.argmax(probs / noise, dim=-1, keepdim=True)
        if not bool(torch.isfinite(probs.gather(1, tokens)).all()):
            torch.multinomial(probs, num_samples=1)
        self._next.update((row, step + 1) for row, step in zip(rows, steps, strict=True))
        if max(steps) >= self._picked:
            self._picked = max(steps) + 1
            self.resume(self._picked)
        return [int(token) for token in tokens.flatten().tolist()]

    def resume(self, step: int) -> None:
        """Set the generator to where plain `generate` leaves it after a number of picked steps."""
        if not self._states:
            return
        if self._generator is None:
            set_generator_state(self._device, self._states[step])
        else:
            self._generator.set_state(self._states[step])

    def interrupted(self, step: int) -> bool:
        """Whether something else has drawn from the generator since `resume(step)`."""
        return bool(self._states) and not torch.equal(self._state(), self._states[step])

    def restart(self, step: int, rows: Iterable[int]) -> None:
        """Let these rows go on at a step, from the generator's present state."""
        self._next = dict.fromkeys(rows, step)
        self._rings.clear()
        if self._states:
            self._states[step:] = [self._state()]
            self._held = {known: self._held[known] for known in self._held if known < step}
            self._picked = step

    def _state(self) -> torch.Tensor:
        own = self._generator
        return generator_state(self._device) if own is None else own.get_state()

    def ahead(self, row: int) -> Noise:
        """The noise of a row's next picks; see `Frontier.noise`."""
        step, count = self._next[row], self._positions()
        if not count:
            return NO_NOISE
        ring, end = self._rings.get(row) or (np.empty((count, self._width)), 0)
        for later in range(max(step, end), step + count):
            noise = -torch.expm1(-self._of_step(later)[row])
            ring[later % count] = noise.clamp_(max=_BELOW_ONE).cpu().numpy()
        self._rings[row] = ring, step + count
        return ring, step % count

    def _positions(self) -> int:
        """How many positions to look ahead, so that those of all rows can be kept."""
        size = self._rows * self._rows * self._width * 4
        return min(POSITIONS, self._bytes // size) if size else 0

    def leave(self, row: int) -> None:
        """A row has ended: it needs no more noise."""
        del self._next[row]
        self._rings.pop(row, None)

    def _of_step(self, step: int) -> torch.Tensor:
        """float32[N, V], the noise of a step."""
        noise = self._held.get(step)
        if noise is None:
            if not self._states:
                self._states.append(self._state())
            noise = torch.empty((self._rows, self._width), device=self._device)
            for drawn in range(min(step, len(self._states) - 1), step + 1):
                self._twin.set_state(self._states[drawn])
                noise.exponential_(1, generator=self._twin)
                if drawn + 1 == len(self._states):
                    self._states.append(self._twin.get_state())
            self._make_room(noise.nbytes)
            self._held[step] = noise
        return noise

    def _make_room(self, size: int) -> None:
        """Drop what no row needs any more and, if that is not enough, what is needed last."""
        most = self._bytes // size - 1
        if len(self._held) <= most:
            return
        near = range(max(1, self._positions()))
        soon = {step + place for step in self._next.values() for place in near}
        first = min(self._next.values(), default=0)
        past = [step for step in self._held if step < first]
        later = sorted((step for step in self._held if step not in soon), reverse=True)
        for step in dict.fromkeys([*past, *later]):
            if len(self._held) <= most:
                break
            del self._held[step]


@cache
def foreseen(device: torch.device, width: int) -> bool:
    """Whether `LockstepNoise` picks as `torch.multinomial` does on this device, by a test run."""
    rows = 2
    try:
        generator_state(device)
        real, own = torch.Generator(device), torch.Generator(device)
        logits = torch.linspace(0.0, 4.0, width, device=device)
        probs = torch.stack([logits.roll(row * 7) for row in range(rows)]).softmax(dim=-1)
        for seed in range(3):
            real.manual_seed(seed)
            own.manual_seed(seed)
            expected = [torch.multinomial(probs, 1, generator=real).tolist() for _ in range(2)]
            noise = LockstepNoise(device, rows, generator=own)
            for row in reversed(range(rows)):
                for step in range(2):
                    if noise.pick([row], [step], probs[row : row + 1]) != expected[step][row]:
                        return False
            if not torch.equal(real.get_state(), own.get_state()):
                return False
    except Exception:  # the device has no such generators
        return False
    return True
