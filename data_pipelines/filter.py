"""Filter shards: score every sample, decide over the whole set, write down what is kept.

Scores are on the disk before anything is decided. So another threshold needs no new scoring, and
the report can say what each rule alone would drop.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from data_pipelines.keep_list import FILE, write_keep_list
from data_pipelines.scores import ScoredSet, ShardScores, column_name, score_shards
from data_pipelines.shards import ShardSet, open_shards, read, write_shards
from data_pipelines.tar_index import Entry
from vlp.console import progress, say, show, show_table
from vlp.errors import UserError
from vlp.output import output_folder, write_json
from vlp.spec import build, names, parse
from vlp.types import Sample

FAMILY = "data_pipelines.filters"


class Column(NamedTuple):
    """What one filter says of the samples of one shard that could be scored."""

    values: np.ndarray
    left: np.ndarray
    """Bool: the samples that earlier rules kept."""
    first: int
    """Place of the shard's first sample among those of all shards, to tell an earlier sample."""


@runtime_checkable
class Filter(Protocol):
    """A part that scores samples and, with a summary of the whole set, decides which stay.

    A filter with bounds on its number inherits all but ``score`` from BoundedFilter.
    """

    def score(self, samples: Sequence[Sample]) -> Sequence[float | str]:
        """Return a value for each sample, whatever other samples there are."""
        ...

    def summarise(self, column: Column) -> Any:
        """Return what the decision must know of one shard."""
        ...

    def reduce(self, summaries: Iterable[Any]) -> Any:
        """Return what the decision must know of the whole set; their order does not matter."""
        ...

    def keep(self, column: Column, reduced: Any) -> np.ndarray:
        """Return which samples of one shard stay, as bool."""
        ...


@dataclass(frozen=True, kw_only=True)
class BoundedFilter(ABC):
    """A filter that keeps the samples whose number lies between bounds, both included."""

    min: float | None = None
    """Smallest number that stays."""
    max: float | None = None
    """Largest number that stays."""
    top: float | None = None
    """Share that stays, the highest numbers of all that were scored, in (0, 1]; ties stay too.

    The share is of every sample that could be scored, whatever rules stand before this one
    (Gadre et al. 2023, DataComp).
    """

    def __post_init__(self) -> None:
        if self.top is not None and not 0 < self.top <= 1:
            raise UserError(f"top={self.top} is no share. Give more than 0 and at most 1.")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UserError(f"min={self.min} is above max={self.max}, so nothing could stay.")

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float]:
        """Return one number for each sample, in order; higher is better where ``top`` is used."""

    def summarise(self, column: Column) -> np.ndarray:
        """Return the numbers of a shard where ``top`` has to compare them with all others."""
        return column.values if self.top is not None else column.values[:0]

    def reduce(self, summaries: Iterable[np.ndarray]) -> float:
        """Return the lowest number of the top share; -inf where there is no ``top``."""
        pools = [numbers for numbers in summaries if len(numbers)]
        if self.top is None or not pools:
            return -math.inf
        pool = np.concatenate(pools)
        # 0.29 * 100 is 28.999999999999996, and means 29.
        count = max(1, math.floor(self.top * len(pool) + 1e-6))
        return float(np.partition(pool, len(pool) - count)[len(pool) - count])

    def keep(self, column: Column, reduced: float) -> np.ndarray:
        """Return which samples are within the bounds and in the top share."""
        low = max(reduced, -math.inf if self.min is None else self.min)
        high = math.inf if self.max is None else self.max
        return (column.values >= low) & (column.values <= high)


class Rule(NamedTuple):
    """A filter as the user wrote it."""

    text: str
    column: str
    filter: Filter


class Step(NamedTuple):
    """What one rule did: numbers of samples."""

    rule: str
    alone: int
    """Dropped if there were no other rule."""
    dropped: int
    """Dropped of those that earlier rules left."""
    left: int


def filter_shards(
    raw: str,
    clean: Path,
    *,
    keep: Sequence[str],
    samples_per_shard: int = 1000,
    keep_list: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the samples that pass every rule as new shards, with their scores and a report.

    Images go over byte for byte, in the order of the input. Scores that an earlier run left in
    the output folder are used again where they are still valid. ``keep_list`` writes which samples
    pass (see ``data_pipelines/keep_list.py``) in place of shards.

    Raises:
        UserError: There is no rule, a rule cannot be read, or nothing is left.
    """
    rules = read_rules(keep)
    shards = open_shards(raw)
    inputs = [*shards.shards, *([Path(raw)] if Path(raw).is_dir() else [])]
    config = {
        "raw": str(raw),
        "keep": list(keep),
        "samples_per_shard": samples_per_shard,
        "keep_list": keep_list,
    }
    with output_folder(clean, "filter", config, inputs=inputs, overwrite=overwrite) as part:
        say(f"Scoring {len(shards)} samples of {raw} ...")
        scorers = {rule.column: rule.filter for rule in rules}
        scored = score_shards(shards, scorers, part / "scores", earlier=clean / "scores")
        kept, steps = decide(rules, scored.shards)
        if not steps[-1].left:
            raise UserError(_nothing_left(raw, len(shards), scored, steps))
        entries = _kept(scored.shards, kept, steps[-1].left)
        if keep_list:
            num_samples, num_shards = write_keep_list(entries, shards.shards, part / FILE), 0
        else:
            samples = (read(entry) for entry in entries)
            num_samples, num_shards = write_shards(
                samples, part, samples_per_shard=samples_per_shard
            )
        report = {
            "raw": str(raw),
            "out": str(clean),
            **_funnel(shards, scored, steps),
            "samples_out": num_samples,
            "shards_out": num_shards,
        }
        write_json(part / "report.json", report)
    _show(report)
    return report


def read_rules(keep: Sequence[str]) -> list[Rule]:
    """Return the filters that the texts name, such as ``"caption_words(min=3)"``.

    Raises:
        UserError: There is none, or one cannot be built.
    """
    if not keep:
        raise UserError('There is no rule. Give --keep "caption_words(min=3)" or another filter.')
    rules = []
    for text in keep:
        try:
            part = build(FAMILY, text)
        except UserError as error:
            raise UserError(str(error) if text in str(error) else f"{text}: {error}") from None
        if not isinstance(part, Filter):
            raise UserError(f"{text} is no filter. Known: {', '.join(names(FAMILY))}.")
        rules.append(Rule(text, column_name(parse(text)[0], part), part))
    return rules


def decide(
    rules: Sequence[Rule], shards: Sequence[ShardScores]
) -> tuple[list[np.ndarray], list[Step]]:
    """Return which samples of each shard pass every rule, and what each rule dropped.

    A rule that compares samples with each other, such as ``exact_duplicate``, sees only those that
    earlier rules left; so the copy that it keeps does not fall later for an earlier rule.
    """
    everything = [np.ones(len(scores.entries), bool) for scores in shards]
    left, steps = everything, []
    for rule in rules:
        alone = _apply(rule, shards, everything)
        after = _apply(rule, shards, left)
        count = _count(after)
        steps.append(
            Step(rule.text, _count(everything) - _count(alone), _count(left) - count, count)
        )
        left = after
    return left, steps


def _apply(
    rule: Rule, shards: Sequence[ShardScores], left: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return which of the samples that are left one rule leaves."""
    first = np.cumsum([0, *(len(mask) for mask in left)])
    columns = [
        Column(scores.columns[rule.column], mask, int(start))
        for scores, mask, start in zip(shards, left, first[:-1], strict=True)
    ]
    reduced = rule.filter.reduce(rule.filter.summarise(column) for column in columns)
    return [column.left & rule.filter.keep(column, reduced) for column in columns]


def _count(masks: Sequence[np.ndarray]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _kept(shards: Sequence[ShardScores], kept: Sequence[np.ndarray], count: int) -> Iterator[Entry]:
    with progress(count, "write") as advance:
        for scores, mask in zip(shards, kept, strict=True):
            for place in np.flatnonzero(mask):
                yield scores.entries[place]
                advance()


def _funnel(shards: ShardSet, scored: ScoredSet, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "samples_in": len(shards),
        "failed": scored.failed.as_dict(),
        "rules": [step._asdict() for step in steps],
        "faults": shards.faults.as_dict(),
        "scores_reused": scored.num_reused,
    }


def _nothing_left(raw: str, count: int, scored: ScoredSet, steps: Sequence[Step]) -> str:
    """Return one line that names what to loosen."""
    if not any(len(scores.entries) for scores in scored.shards):
        return f"None of the {count} samples of {raw} can be scored: {scored.failed.summary()}."
    worst = max(steps, key=lambda step: step.dropped)
    return (
        f"Nothing is left of the {count} samples of {raw}. {worst.rule} dropped most: "
        f"{worst.dropped} of the {worst.dropped + worst.left} that came to it. Loosen that rule."
    )


def _show(report: dict[str, Any]) -> None:
    """Print the funnel: what came in, what each rule dropped, what is left."""
    left = report["samples_in"]
    rows: list[Sequence[Any]] = [("samples in", "", "", left)]
    for reason, fault in report["failed"].items():
        left -= fault["count"]
        rows.append((f"failed: {reason}", "", fault["count"], left))
    rows += [
        (step["rule"], step["alone"], step["dropped"], step["left"]) for step in report["rules"]
    ]
    show_table(("rule", "drops alone", "dropped", "left"), rows)
    share = report["samples_out"] / report["samples_in"]
    what = (
        f"number of shards: {report['shards_out']}" if report["shards_out"] else f"listed in {FILE}"
    )
    show(
        f"Kept {report['samples_out']} of {report['samples_in']} samples ({share:.1%}) in "
        f"{report['out']}, {what}."
    )
    if report["faults"]:
        found = (f"{fault['count']} {reason}" for reason, fault in report["faults"].items())
        show(f"Not among the samples: {', '.join(found)}.")
    if report["scores_reused"]:
        say(f"The scores of {report['scores_reused']} shards were still valid.")
