"""The cost of a forward pass by width (tokens per pass), relative to other widths.

A busy machine slows all passes. Timings of different moments therefore say little about one width
compared with another. Each timing is compared with those of other widths just before it: the
logarithm of a timing is taken as the cost of its width, plus the load of the moment, plus noise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import exp, log

_KEPT = 9  # comparisons kept per width and context band; their median is the cost
_MOMENT = 8  # passes that were run under about the same load
_OTHERS = 3  # passes of other widths in a moment that a comparison needs
_TRACED = 32  # passes over which a change of the load is traced back
_CHANGED = 4.0  # times the usual noise is a change of the load
_LEARNED = 0.05  # weight of a new value in the usual noise
_LOAD_OVER = 5  # passes; the median of their slowdown is the load
_GUESSED_SLOPE = 0.02  # of one token's cost, per further token, where there are no timings yet


class Costs:
    """Estimates the cost of forward passes from those that generation runs.

    Args:
        widths: the widths to estimate, in tokens of a row per forward pass; ascending, 1 first.
        rows: number of rows of the batch.

    Example:
        >>> costs = Costs((1, 8))
        >>> for _ in range(8):
        ...     costs.observe(1, 100, 0.02)
        ...     costs.observe(8, 100, 0.03)
        >>> [round(seconds, 3) for seconds in costs.curve(100)]
        [0.02, 0.03]
    """

    def __init__(self, widths: Sequence[int], rows: int = 1) -> None:
        self._widths = tuple(widths)
        self._slope = _GUESSED_SLOPE * rows
        self._places = {width: place for place, width in enumerate(widths)}
        self._bands: dict[int, _Band] = {}
        self._current: _Band | None = None
        self._moment: deque[tuple[int, float]] = deque(maxlen=_MOMENT)  # place, log seconds
        self._last: dict[int, tuple[int, float]] = {}  # place: pass, log seconds
        self._added: deque[tuple[int, _Band, int]] = deque(maxlen=_TRACED)  # pass, band, place
        self._passes = 0
        self._noise = 0.1  # of the logarithm of a timing
        self._loads: deque[float] = deque(maxlen=_LOAD_OVER)

    def observe(self, width: int, context: int, seconds: float) -> None:
        """Record the `seconds` of one forward pass; a width not in `widths` is ignored."""
        place = self._places.get(width)
        if place is None:
            return
        band, measured = self._band(context), log(seconds)
        if band is not self._current:  # other lengths say nothing about the load
            self._current = band
            self._moment.clear()
            self._last.clear()
        costs = band.costs
        self._loads.append(measured - costs[place] + costs[0])
        if self._load_changed(place, measured):
            return
        others = [past - costs[other] for other, past in self._moment if other != place]
        if len(others) >= (_OTHERS if band.comparisons(place) >= _OTHERS else 1):
            band.add(place, measured - _middle(others))
            self._added.append((self._passes, band, place))
        self._moment.append((place, measured))

    def _load_changed(self, place: int, measured: float) -> bool:
        """Whether a width took another time than of late, which no other width explains.

        The load, or this pass, is then another one. The comparisons made since are withdrawn.
        """
        self._passes += 1
        since, before = self._last.get(place, (-_TRACED, measured))
        self._last[place] = self._passes, measured
        if self._passes - since > _TRACED:
            return False
        change, noise = abs(measured - before), self._noise
        self._noise += _LEARNED * (min(change, 2 * noise) - noise)
        if change <= _CHANGED * noise:
            return False
        self._moment.clear()
        while self._added and self._added[-1][0] > since:
            _, band, compared = self._added.pop()
            band.withdraw(compared)
        return True

    def known(self, place: int, context: int) -> bool:
        """Whether there are enough comparisons of the width at `place`."""
        return self._band(context).comparisons(place) >= _OTHERS

    @property
    def comparable(self) -> bool:
        """Whether a pass would now be compared with a plain one."""
        return any(place == 0 for place, _ in self._moment)

    @property
    def load(self) -> float:
        """Seconds of a plain forward pass at the present load; 0 before the first pass."""
        return exp(_middle(self._loads)) if self._loads else 0.0

    def relative(self, context: int) -> list[float]:
        """The cost of each width in plain forward passes; it never decreases with the width."""
        return self._band(context).relative

    def curve(self, context: int) -> list[float]:
        """Seconds of a forward pass for each width, at the present load of the machine."""
        load = self.load
        return [cost * load for cost in self.relative(context)]

    def _band(self, context: int) -> _Band:
        """The band of a context: up to 511, 1023, 2047, ... tokens.

        A new band starts with a copy of the nearest known one.
        """
        number = (context >> 9).bit_length()
        band = self._bands.get(number)
        if band is None:
            nearest = min(self._bands, key=lambda other: abs(other - number), default=None)
            old = None if nearest is None else self._bands[nearest]
            band = self._bands[number] = _Band(self._widths, self._slope, old)
        return band


class _Band:
    """What is known of the widths at contexts of about the same length."""

    def __init__(self, widths: Sequence[int], slope: float, old: _Band | None = None) -> None:
        self._widths, self._slope = widths, slope
        # by place: comparisons; the first is what was expected before
        self._kept: dict[int, deque[float]] = {}
        if old is not None:
            self._kept = {place: deque(kept, _KEPT) for place, kept in old._kept.items()}
        self._fit()

    def withdraw(self, place: int) -> None:
        """Withdraw the last comparison of the width at `place`."""
        kept = self._kept.get(place)
        if kept is None:
            return
        kept.pop()
        if len(kept) < 2:  # what was expected of the width
            del self._kept[place]
        self._fit()

    def comparisons(self, place: int) -> int:
        """How many comparisons of the width at `place` there are, at most `_KEPT`."""
        return len(self._kept.get(place, ()))

    def add(self, place: int, cost: float) -> None:
        """Add a comparison of the width at `place`: the logarithm of its cost."""
        if place not in self._kept:
            self._kept[place] = deque([self.costs[place]], _KEPT)
        self._kept[place].append(cost)
        self._fit()

    def _fit(self) -> None:
        """Draw the curve through the widths that were compared, and continue it."""
        widths = self._widths
        places = sorted({0, *self._kept})
        # widths that contradict each other are pooled, so that the curve does not decrease
        pools: list[list[float]] = []  # cost, weight, number of widths
        for place in places:
            kept = self._kept.get(place)
            pool = [_middle(kept), len(kept), 1] if kept else [0.0, 1, 1]
            while pools and pools[-1][0] > pool[0]:
                cost, weight, count = pools.pop()
                total = weight + pool[1]
                pool = [(cost * weight + pool[0] * pool[1]) / total, total, count + pool[2]]
            pools.append(pool)
        known = [exp(cost - pools[0][0]) for cost, _, count in pools for _ in range(int(count))]
        self.relative: list[float] = []
        after = 0
        for place, width in enumerate(widths):
            if after < len(places) and places[after] == place:
                self.relative.append(known[after])
                after += 1
                continue
            low = places[after - 1]
            if after < len(places):  # between two known widths
                start, slope = known[after - 1], known[after] - known[after - 1]
                slope /= widths[places[after]] - widths[low]
            else:  # on from plain through the last known width
                start, slope = known[-1], self._slope
                if low:
                    slope = (start - 1.0) / (widths[low] - widths[0])
            self.relative.append(start + slope * (width - widths[low]))
        self.costs = [log(cost) + pools[0][0] for cost in self.relative]


def _middle(values: Sequence[float] | deque[float]) -> float:
    """The median; of two middle values the lower, as timings are biased upwards."""
    return sorted(values)[(len(values) - 1) // 2]
