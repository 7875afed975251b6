"""What a report shows of a set, gathered in two walks over its scores, a shard at a time.

Whatever is held is small: counts, and few samples drawn by lots that follow from the seed and the
place of a sample in the set. So it is the same on every engine and for any number of workers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int64

from data_pipelines.curation.candidates import hash64
from data_pipelines.curation.columns import Column
from data_pipelines.curation.decide import Decision
from data_pipelines.curation.histogram import Histogram, Spread
from data_pipelines.curation.rules import BoundedFilter, Rule, parts_of
from data_pipelines.curation.scores import ScoredSet
from data_pipelines.curation.sheet import OK

SHOWN = 6
"""Samples of each kind that a rule's gallery shows."""
DRAWN = 2000
"""Samples whose captions are read, to say what lengths of captions are kept."""
GOLDEN = 0.6180339887498949
"""Steps of this size, each taken modulo 1, stay apart."""
MOST_TEXTS = 500
"""A column with more different texts, such as names, is no grouping of the samples."""


class Pick(NamedTuple):
    """A sample to show."""

    distance: float
    """From the threshold; 0 for one that was drawn by lot."""
    lot: float
    place: int
    """Among the samples of all shards."""
    value: Any
    """What the rule's filter said of it."""


class Few:
    """Those of all samples that are offered which come first: the nearest, then by lot."""

    def __init__(self, count: int) -> None:
        self.count, self.picks = count, list[Pick]()

    def offer(
        self,
        rows: Bool[np.ndarray, "rows"],
        lots: Float64[np.ndarray, "rows"],
        first: int,
        values: pa.Array | None,
        distances: Float64[np.ndarray, "rows"] | None = None,
    ) -> None:
        """Take some rows of a shard, whose first stands at ``first``, into account."""
        far = np.zeros(len(rows)) if distances is None else distances
        if len(self.picks) == self.count:
            distance, lot = self.picks[-1][:2]
            rows = rows & ((far < distance) | (far == distance) & (lots < lot))
        found = np.flatnonzero(rows)
        if len(found):
            nearest = found[np.lexsort((lots[found], far[found]))[: self.count]].tolist()
            told = [None if values is None else values[row].as_py() for row in nearest]
            new = [
                Pick(float(far[row]), float(lots[row]), first + row, value)
                for row, value in zip(nearest, told, strict=True)
            ]
            self.picks = sorted(self.picks + new, key=lambda pick: pick[:2])[: self.count]


@dataclass
class Gallery:
    """Which samples are shown of a rule, of those that earlier rules left."""

    kept: Few = field(default_factory=lambda: Few(SHOWN))
    dropped: Few = field(default_factory=lambda: Few(SHOWN))
    just_kept: Few = field(default_factory=lambda: Few(SHOWN // 2))
    """Nearest to a threshold of the rule."""
    just_dropped: Few = field(default_factory=lambda: Few(SHOWN // 2))

    def lists(self) -> dict[str, list[Pick]]:
        """Return the picks by kind."""
        return {kind: few.picks for kind, few in vars(self).items()}


@dataclass
class Survey:
    """What was gathered."""

    galleries: list[Gallery]
    """Of each rule."""
    histograms: dict[str, Histogram]
    """By column of numbers."""
    groups: dict[str, Counter[tuple[str, bool]]]
    """By column of texts, how many samples have a text and are kept, or not."""
    drawn: list[int]
    """Places of ``DRAWN`` samples, ascending."""
    overlap: list[list[int]]
    """How many samples two rules would both drop, as far as they were scored; see
    ``Decision.failing``."""


class _Shard(NamedTuple):
    columns: dict[str, Column]
    """Of numbers and of texts."""
    is_scored: dict[str, Bool[np.ndarray, "rows"]]
    """By column, those of bytes, too."""
    is_kept: Bool[np.ndarray, "rows"]
    first: Any
    """See ``Decision.first``."""
    failing: Any
    lots: Float64[np.ndarray, "rows"]
    start: int
    """Place of its first sample."""


def survey(rules: Sequence[Rule], scored: ScoredSet, decision: Decision, *, seed: int) -> Survey:
    """Return what the report shows of a set."""
    thresholds = _thresholds(rules, scored, decision)
    galleries, drawn = [Gallery() for _ in rules], Few(DRAWN)
    spreads: dict[str, Spread] = {}
    patterns: Counter[int] = Counter()
    groups: dict[str, Counter[tuple[str, bool]]] = {}
    for shard in _walk(rules, scored, decision, seed):
        bits, counts = np.unique(shard.failing, return_counts=True)
        patterns.update(dict(zip(bits.tolist(), counts.tolist(), strict=True)))
        drawn.offer(np.ones(len(shard.lots), bool), shard.lots, shard.start, None)
        for number, rule in enumerate(rules):
            _pick(galleries[number], number, rule, shard, thresholds[number])
        for name, column in shard.columns.items():
            if _is_number(column.values.type):
                spread = spreads.setdefault(name, Spread())
                spread.add(column.numbers, shard.lots)
            elif pa.types.is_string(column.values.type):
                _group(groups.setdefault(name, Counter()), column, shard.is_kept)
    histograms = {
        name: spread.histogram(_of_column(name, rules, thresholds))
        for name, spread in spreads.items()
    }
    for shard in _walk(rules, scored, decision, seed) if histograms else ():
        for name, histogram in histograms.items():
            if name in shard.columns and _is_number(shard.columns[name].values.type):
                histogram.add(shard.columns[name].numbers, shard.is_kept)
    return Survey(
        galleries,
        histograms,
        {name: found for name, found in groups.items() if _is_grouping(found)},
        sorted(pick.place for pick in drawn.picks),
        _overlap(patterns, len(rules)),
    )


def lots_of(places: Int64[np.ndarray, "rows"], seed: int) -> Float64[np.ndarray, "rows"]:
    """Return a number in [0, 1) for each place of a set: who is drawn has the least.

    Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15 (SplitMix64).
    """
    bits = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(hash64(str(seed)))
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def _walk(
    rules: Sequence[Rule], scored: ScoredSet, decision: Decision, seed: int
) -> Iterator[_Shard]:
    names, start = list(parts_of(rules)), 0
    for n, keys in enumerate(scored.keys):
        columns, is_scored = _columns(scored, n, names, start)
        yield _Shard(
            columns,
            is_scored,
            decision.copies[n] > 0,
            decision.first[n],
            decision.failing[n],
            lots_of(start + np.arange(len(keys)), seed),
            start,
        )
        start += len(keys)


def _columns(
    scored: ScoredSet, n: int, names: Sequence[str], start: int
) -> tuple[dict[str, Column], dict[str, Bool[np.ndarray, "rows"]]]:
    """Return the numbers and texts of a shard; hashes and features are large and not read."""
    schema, keys = pq.read_schema(scored.path(n)), scored.keys[n]
    shown = [name for name in names if _is_shown(schema.field(name).type)]
    everything = np.ones(len(keys), bool)
    columns = {name: Column(scored.read(n, name), everything, keys, start) for name in shown}
    is_scored = {name: column.is_scored for name, column in columns.items()}
    for name in names:
        if name not in shown:
            status = scored.status(name, n).to_pylist()
            is_scored[name] = np.array([told == OK for told in status], bool)
    return columns, is_scored


def _thresholds(
    rules: Sequence[Rule], scored: ScoredSet, decision: Decision
) -> list[dict[str, tuple[float, float]]]:
    """Return for each rule, by column, between which numbers a sample stays."""
    found = []
    for number, rule in enumerate(rules):
        left = [(first < 0) | (first >= number) for first in decision.first]
        found.append(
            {
                part.column: part.filter.bounds(scored.columns(part.column, left))
                for part in rule.parts
                if isinstance(part.filter, BoundedFilter)
            }
        )
    return found


def _of_column(
    name: str, rules: Sequence[Rule], thresholds: Sequence[Mapping[str, tuple[float, float]]]
) -> list[tuple[float, float]]:
    return [own[name] for own in thresholds if name in own]


def _pick(
    gallery: Gallery,
    number: int,
    rule: Rule,
    shard: _Shard,
    thresholds: Mapping[str, tuple[float, float]],
) -> None:
    names = [part.column for part in rule.parts]
    lots = (shard.lots + number * GOLDEN) % 1  # so that rules show different samples
    is_failed = ~np.logical_and.reduce([shard.is_scored[name] for name in names])
    column = shard.columns.get(names[0]) if len(names) == 1 else None
    values = column.values if column else None
    kept = (shard.first < 0) | (shard.first > number)
    dropped = (shard.first == number) & ~is_failed
    gallery.kept.offer(kept, lots, shard.start, values)
    gallery.dropped.offer(dropped, lots, shard.start, values)
    if column is None or not thresholds:
        return
    ((low, high),) = thresholds.values()
    numbers = column.numbers
    far = np.fmin(abs(numbers - low), abs(numbers - high))
    is_near, lots = np.isfinite(far), (lots + 0.5) % 1
    gallery.just_kept.offer(kept & is_near, lots, shard.start, values, far)
    gallery.just_dropped.offer(dropped & is_near, lots, shard.start, values, far)


def _group(groups: Counter[tuple[str, bool]], column: Column, is_kept: np.ndarray) -> None:
    if len(groups) <= 2 * MOST_TEXTS:
        for of_kept in (True, False):
            own = column.values.filter(pa.array(is_kept == of_kept))
            for value in own.value_counts().to_pylist():
                groups[value["values"] or "(not scored)", of_kept] += value["counts"]


def _is_grouping(groups: Counter[tuple[str, bool]]) -> bool:
    number = len({text for text, _ in groups})
    return 0 < number <= min(MOST_TEXTS, groups.total() / 2)


def _overlap(patterns: Mapping[int, int], count: int) -> list[list[int]]:
    table = [[0] * count for _ in range(count)]
    for bits, samples in patterns.items():
        rules = [number for number in range(count) if bits >> number & 1]
        for one in rules:
            for other in rules:
                table[one][other] += samples
    return table


def _is_shown(kind: pa.DataType) -> bool:
    return _is_number(kind) or pa.types.is_string(kind) or pa.types.is_null(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
