"""How the numbers of one filter are spread over a set, counted a shard at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

BARS = 40
DRAWN = 4096
"""Numbers, drawn by lot, by which is chosen between which limits the others are counted."""
TAIL = 0.005
"""Share of the numbers, at either end, that may lie outside the limits."""
WIDE = 100
"""Ratio of the limits from which equal ratios are drawn equally far apart."""
ENDLESS = {-np.inf, np.inf}


class Spread:
    """Between which numbers a histogram is worth drawing: a first walk finds out."""

    def __init__(self) -> None:
        self.drawn, self._lots = np.zeros(0), np.zeros(0)
        self.least, self.most = np.inf, -np.inf
        self.is_whole = True
        """Whether all numbers are whole."""

    def add(self, numbers: Float64[np.ndarray, "rows"], lots: Float64[np.ndarray, "rows"]) -> None:
        """Take the numbers of a shard into account, less those that are not finite."""
        is_finite = np.isfinite(numbers)
        numbers, lots = numbers[is_finite], lots[is_finite]
        if not len(numbers):
            return
        self.least = min(self.least, numbers.min())
        self.most = max(self.most, numbers.max())
        self.is_whole &= bool((numbers == np.round(numbers)).all())
        order = np.argpartition(lots, DRAWN)[:DRAWN] if len(lots) > DRAWN else slice(None)
        lots = np.concatenate([self._lots, lots[order]])
        first = np.argsort(lots)[:DRAWN]
        self._lots = lots[first]
        self.drawn = np.concatenate([self.drawn, numbers[order]])[first]

    def histogram(self, thresholds: Sequence[tuple[float, float]]) -> "Histogram":
        """Return a histogram, still empty, that shows the thresholds, too."""
        if not len(self.drawn):
            return Histogram([0.0, 1.0], [], [], is_log=False)
        lows, highs = (sorted({pair[n] for pair in thresholds} - ENDLESS) for n in (0, 1))
        shown = [mark for mark in (*lows, *highs) if self.least <= mark <= self.most]
        low = float(min(np.quantile(self.drawn, TAIL, method="lower"), *shown, np.inf))
        high = float(max(np.quantile(self.drawn, 1 - TAIL, method="higher"), *shown, -np.inf))
        is_log = low > 0 and high > WIDE * low
        return Histogram(self._edges(low, high, is_log=is_log), lows, highs, is_log=is_log)

    def _edges(self, low: float, high: float, *, is_log: bool) -> list[float]:
        if is_log:
            return np.geomspace(low, high, BARS + 1).tolist()
        if self.is_whole:
            width = int((high - low) // BARS) + 1
            return (np.arange(np.floor(low), high + width + 0.5, width) - 0.5).tolist()
        return np.linspace(low, high if high > low else low + 1, BARS + 1).tolist()


@dataclass
class Histogram:
    """How many samples have numbers between edges: kept in the end, or not."""

    edges: list[float]
    lows: list[float]
    """Least numbers that stay, of each rule that has one."""
    highs: list[float]
    """Largest numbers that stay."""
    is_log: bool
    kept: Any = field(init=False)
    dropped: Any = field(init=False)
    outside: int = 0
    """Samples whose number is lower or higher than the edges, or not finite."""

    def __post_init__(self) -> None:
        self.kept, self.dropped = (np.zeros(len(self.edges) - 1, np.int64) for _ in range(2))

    def add(self, numbers: Float64[np.ndarray, "rows"], is_kept: Bool[np.ndarray, "rows"]) -> None:
        """Count the numbers of a shard; NaN stands for a sample without one."""
        for counts, rows in ((self.kept, is_kept), (self.dropped, ~is_kept)):
            own = numbers[rows & ~np.isnan(numbers)]
            found, _ = np.histogram(own, self.edges)
            counts += found
            self.outside += len(own) - int(found.sum())

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "edges": self.edges,
            "kept": self.kept.tolist(),
            "dropped": self.dropped.tolist(),
            "outside": self.outside,
            "thresholds": {"min": self.lows, "max": self.highs},
            "is_log": self.is_log,
        }
