"""Axes of charts: round ticks and the way from values to pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A linear axis: values from ``low`` to ``high`` lie between pixels ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The pixel of a value, to a tenth; values beyond the ends stay at them."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def labels(self, scale: float = 1.0) -> list[tuple[float, str]]:
        """(pixel, text) of every tick; ``scale`` 100 makes percentages."""
        return [(self.at(tick), f"{round(tick * scale, 6):g}") for tick in self.ticks]


def axis(values: Sequence[float], start: float, end: float, *, floor: float = 0.0, ceiling: float = math.inf) -> Axis:
    """An axis around ``values`` with round ticks, between ``floor`` and ``ceiling``."""
    low, high = (min(values), max(values)) if values else (floor, floor + 1.0)
    room = max((high - low) * 0.06, 0.01 * max(abs(high), 1e-9))
    low, high = max(floor, low - room), min(ceiling, high + room)
    step = _step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def _step(span: float, wanted: int = 6) -> float:
    rough = max(span, 1e-9) / wanted
    base = 10.0 ** math.floor(math.log10(rough))
    return next(base * m for m in (1, 2, 5, 10) if base * m >= rough - 1e-12)
