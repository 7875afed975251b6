"""What a drawing of numbers stands in: axes with round ticks, places on the page, a grid."""

import math
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 360, 210
"""Of a drawing, in the units of its text: about what a phone shows, so that it stays readable."""
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24


class Axis(NamedTuple):
    """From the lowest to the highest number that is drawn."""

    low: float
    high: float
    ticks: list[float]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return how far a number lies from the low end, in shares of the axis."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class Frame(NamedTuple):
    """Two axes on the page."""

    across: Axis
    up: Axis

    def x(self, value: float) -> float:
        """Return where a number of the axis across lies, from the left of the drawing."""
        return round(LEFT + self.across.share(value) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return where a number of the axis up lies, from the top of the drawing."""
        return round(HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - TOP - BOTTOM), 1)

    def grid(self) -> Markup:
        """Return lines and ticks."""
        drawn = []
        for tick in self.up.ticks:
            y = self.y(tick)
            drawn.append(
                Markup(
                    '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
                    '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
                ).format(LEFT, WIDTH - RIGHT, LEFT - 5, y + 3.5, short(tick), y=y)
            )
        ticks = self.across.ticks
        for tick in ticks[1:] if len(ticks) > 6 else ticks:
            drawn.append(
                Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    self.x(tick), HEIGHT - BOTTOM + 14, short(tick)
                )
            )
        return Markup().join(drawn)


def round_axis(low: float, high: float) -> Axis:
    """Return about five round ticks, and an axis that begins and ends at one or holds all."""
    if low == high:
        is_share = 0 <= low <= 1
        low, high = (0.0, 1.0) if is_share else (low - abs(low) / 2, high + abs(high) / 2)
    step = _round_step(low, high)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, [place * step for place in range(first, last + 1)])


def tight_axis(low: float, high: float, *, is_log: bool = False) -> Axis:
    """Return an axis from ``low`` to ``high`` with the round ticks that lie on it, six at most."""
    if is_log:
        tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [lead * 10.0**ten for ten in tens for lead in (1, 3)]
    else:
        step = _round_step(low, high)
        ticks = [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return Axis(low, high, ticks[:: 1 + (len(ticks) - 1) // 6], is_log)


def short(value: float) -> str:
    """Return a number in at most six signs: 250k, 0.05, 2e-5."""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if abs(value) < 1e-15 or abs(value) >= 1e-3 else f"{value:.2g}"


def _round_step(low: float, high: float) -> float:
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    return next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
