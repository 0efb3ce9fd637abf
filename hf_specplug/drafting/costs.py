"""The cost of a forward pass: seconds by width (tokens per pass) and by length of the context.

Timings are biased upwards: other programs, clock rates and page faults make some of them longer,
never shorter. The estimate is therefore the lower quartile of the last few timings. If all widths
take longer than before, the cause is the load of the machine, which says nothing about one width
compared with another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

_KEPT = 9  # timings kept per width and context band
_ENOUGH = 3  # timings that an estimate of a width needs
_LOAD_OVER = 8  # steps; their median slowdown is the load
_UNLOADED = 1.3  # slowdowns up to this factor are noise
_LASTING = 64  # steps after which a load is taken as permanent
_GUESSED_SLOPE = 0.02  # of one token's cost, per further token, where there are no timings yet


class Costs:
    """Estimates seconds per forward pass from the passes that generation runs.

    Args:
        widths: the widths to estimate, in tokens per forward pass; ascending, 1 first.

    Example:
        >>> costs = Costs((1, 8))
        >>> for _ in range(3): costs.observe(1, 100, 0.02)
        >>> costs.known(1, 100), costs.known(8, 100)
        (True, False)
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = tuple(widths)
        self._bands: dict[int, dict[int, deque[float]]] = {}
        self._estimates: dict[int, dict[int, float]] = {}
        self._ratios: deque[float] = deque(maxlen=_LOAD_OVER)
        self._load = 1.0
        self._loaded = 0

    def observe(self, width: int, context: int, seconds: float) -> None:
        """Record the `seconds` of one forward pass; a width not in `widths` is ignored."""
        band = self._band(context)
        if width not in self._widths:
            return
        if width in self._estimates[band]:
            self._ratios.append(seconds / self._estimates[band][width])
            load = median(self._ratios)
            self._load = load if load > _UNLOADED or load < 1 / _UNLOADED else 1.0
        if self._load != 1.0:
            self._loaded += 1
            if self._loaded < _LASTING:
                return
            self._rescale()
        self._loaded = 0
        times = self._bands[band][width]
        times.append(seconds)
        if len(times) >= _ENOUGH:
            self._estimates[band][width] = sorted(times)[len(times) // 4]

    def _rescale(self) -> None:
        """Take the load as permanent: multiply the estimates of all widths by it."""
        for estimates in self._estimates.values():
            for width in estimates:
                estimates[width] *= self._load
        for band in self._bands.values():
            for times in band.values():
                times.extend([seconds * self._load for seconds in times])
        self._ratios.clear()
        self._load = 1.0

    def known(self, width: int, context: int) -> bool:
        """Whether there are enough timings of this width for an estimate."""
        return width in self._estimates[self._band(context)]

    def curve(self, context: int) -> list[float]:
        """Seconds of a forward pass for each width, at the present load of the machine.

        The values never decrease with the width. Widths without timings are extrapolated with the
        slope of the two widths before them.
        """
        known = self._estimates[self._band(context)]
        curve: list[float] = []
        for place, width in enumerate(self._widths):
            if width in known:
                seconds = known[width]
            elif place == 0:
                seconds = min(known.values(), default=1.0)
            elif place == 1:
                seconds = curve[0] * (1.0 + _GUESSED_SLOPE * (width - self._widths[0]))
            else:
                earlier, last = self._widths[place - 2 : place]
                slope = (curve[-1] - curve[-2]) / (last - earlier)
                seconds = curve[-1] + slope * (width - last)
            curve.append(max(seconds, curve[-1] if curve else 0.0))
        return [seconds * self._load for seconds in curve]

    def _band(self, context: int) -> int:
        """The band of a context: up to 511, 1023, 2047, ... tokens.

        A new band starts with a copy of the nearest known one.
        """
        band = (context >> 9).bit_length()
        if band not in self._bands:
            nearest = min(self._bands, key=lambda other: abs(other - band), default=None)
            old = {} if nearest is None else self._bands[nearest]
            self._bands[band] = {
                width: deque(old.get(width, ()), maxlen=_KEPT) for width in self._widths
            }
            self._estimates[band] = {} if nearest is None else dict(self._estimates[nearest])
        return band
