"""The mixer: a softmax over the evidence of all drafters, with weights learned online.

It turns evidence into probabilities. This is the context mixing of text compressors (Mahoney 2005,
PAQ), applied to drafting. The formula is in `hf_specplug.kernels.mixer.mix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.priors import learned
from hf_specplug.errors import StateError
from hf_specplug.kernels import mixer as kernels

_RATES = np.array([0.006, 0.02, 0.02])  # learning rates: w and v; b and bias; apm


class Mixer:
    """The learned weights of D drafters: how much to trust each, alone and together with others.

    Args:
        names: the names of the drafters, in the order of their bits in `DraftTree.sources`.

    Attributes:
        names: the names of the drafters.
        weights: float64[4, 3 D + 3], one row per weight set: w, b and v of every drafter, the bias,
            and a and c, which are used if the sampling noise is known.
        apm: float64[3, 33], the final recalibration by depth and log-odds.
        rates: float64[3], the learning rates of w and v, of b and bias, and of the apm.

    Example:
        >>> Mixer(["context", "recycling"]).weights.shape
        (4, 9)
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        start = learned("mixer")
        count = len(self.names)
        self.weights = np.empty((kernels.SETS, 3 * count + 3))
        for d, name in enumerate(self.names):
            self.weights[:, 3 * d : 3 * d + 3] = start["drafters"].get(name, start["others"])
        self.weights[:, -3] = start["bias"]
        self.weights[:, -2:] = start["noise"]
        odds = np.linspace(-8.0, 8.0, kernels.BINS)
        self.apm = np.tile(1.0 / (1.0 + np.exp(-odds)), (kernels.DEPTHS, 1))
        self.rates = _RATES.copy()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """`NAME.weights` [4, 3] per drafter, `bias` [4], `noise` [4, 2], `apm` [3, 33]; float64."""
        state = {
            f"{name}.weights": self.weights[:, 3 * d : 3 * d + 3].copy()
            for d, name in enumerate(self.names)
        }
        bias, noise = self.weights[:, -3].copy(), self.weights[:, -2:].copy()
        return {**state, "bias": bias, "noise": noise, "apm": self.apm.copy()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state_dict` returned; drafters missing from it get initial weights.

        Raises:
            StateError: an array has a wrong name or shape, or is not finite. The mixer is then
                unchanged.
        """
        fresh = Mixer(self.names)
        shapes = {key: array.shape for key, array in fresh.state_dict().items()}
        for key, array in state.items():
            if key.endswith(".weights") and key not in shapes:
                continue
            if array.shape != shapes.get(key) or not np.isfinite(array).all():
                raise StateError(
                    f"{key!r} of a mixer must be finite numbers {list(shapes.get(key, []))}, "
                    f"not {array.dtype}{list(array.shape)}"
                )
            if key == "bias":
                fresh.weights[:, -3] = array
            elif key == "noise":
                fresh.weights[:, -2:] = array
            elif key == "apm":
                fresh.apm[:] = array.clip(0.0, 1.0)
            else:
                place = 3 * self.names.index(key.removesuffix(".weights"))
                fresh.weights[:, place : place + 3] = array
        self.weights, self.apm = fresh.weights, fresh.apm
