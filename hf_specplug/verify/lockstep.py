"""Sampling the rows of a batch from the random numbers that plain `generate` draws in lockstep.

Plain `generate` calls `torch.multinomial` once per step for all N rows: it draws exponential noise
[N, V] and picks argmax p / noise in each row (the Gumbel-max trick). Here the rows reach a step at
different times. The first row that needs a step draws its noise from the generator; the others take
their part of it later. When the last row ends, the generator is where plain `generate` leaves it.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.noise import generator_state

HELD = 1 << 26
"""Bytes of noise that are kept for rows that have not reached its step yet. The noise of further
steps is drawn again when a row gets there, from the generator's state before the step."""


class LockstepNoise:
    """The sampling noise of a batch, by step and row.

    Args:
        device: the device of the probabilities.
        rows: number of rows of the batch, including those that have ended.
        held: maximum number of bytes to keep, at least the noise of one step.

    Example:
        >>> noise = LockstepNoise(torch.device("cpu"), rows=2)
        >>> noise.pick(1, 0, torch.tensor([[0.0, 1.0]]))
        1
    """

    def __init__(self, device: torch.device, rows: int, held: int = HELD) -> None:
        self._device, self._rows, self._bytes = device, rows, held
        self._states: list[torch.Tensor] = []  # the generator's state before each drawn step
        self._held: OrderedDict[int, torch.Tensor] = OrderedDict()  # step -> float32[N, V]
        self._twin = torch.Generator(device)

    def pick(self, row: int, step: int, probs: torch.Tensor) -> int:
        """The token of a row at a step, given its `probs` float32[1, V], as multinomial picks it.

        Raises:
            RuntimeError: the probabilities are not finite; it is raised by `torch.multinomial`.
        """
        token = int(torch.argmax(probs[0] / self._of_step(step, probs.shape[-1])[row]))
        if not bool(torch.isfinite(probs[0, token])):
            torch.multinomial(probs, num_samples=1)
        return token

    def _of_step(self, step: int, width: int) -> torch.Tensor:
        """float32[N, V], the noise of a step."""
        noise = self._held.get(step)
        if noise is None:
            noise = torch.empty((self._rows, width), device=self._device)
            if step < len(self._states):
                self._twin.set_state(self._states[step])
                noise.exponential_(1, generator=self._twin)
            else:  # a row reaches its steps one after the other, so this is the next one
                self._states.append(generator_state(self._device))
                noise.exponential_(1)
            while self._held and (len(self._held) + 1) * noise.nbytes > self._bytes:
                self._held.popitem(last=False)
            self._held[step] = noise
        self._held.move_to_end(step)
        return noise


@cache
def foreseen(device: torch.device, rows: int, width: int) -> bool:
    """Whether `LockstepNoise` picks as `torch.multinomial` does on this device, by a test run."""
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            logits = torch.linspace(0.0, 4.0, width, device=device)
            probs = torch.stack([logits.roll(row * 7) for row in range(rows)]).softmax(dim=-1)
            for seed in range(4):
                torch.manual_seed(seed)
                expected = [torch.multinomial(probs, 1).squeeze(1).tolist() for _ in range(2)]
                state = generator_state(device)
                torch.manual_seed(seed)
                noise = LockstepNoise(device, rows)
                for row in reversed(range(rows)):
                    for step in range(2):
                        if noise.pick(row, step, probs[row : row + 1]) != expected[step][row]:
                            return False
                if not torch.equal(state, generator_state(device)):
                    return False
    except Exception:  # the device has no such generators
        return False
    return True


class RowVerifier(Verifier):
    """A `Verifier` of one row of a batch.

    Args:
        row: its index in the batch.
        noise: the noise of the batch, if it is sampled.
        input_ids: int64[1, n], the row's prompt, padding on its left included.
        processors, criteria, config: those of the batch.
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
        self._row, self._shared = row, noise
        self._prompt = input_ids.shape[1]

    def _draw(self, probs: torch.Tensor, node: int) -> int:
        return self._shared.pick(self._row, self._length - self._prompt, probs)
