"""From scores to what is kept: rules in their order, over the whole set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8, UInt8, UInt64

from data_pipelines.curation.rules import Rule
from data_pipelines.curation.scores import ScoredSet
from data_pipelines.curation.sheet import FAILED, Mask
from data_pipelines.faults import Faults
from data_pipelines.keep_list import MOST
from vlp.errors import UserError

MOST_RULES = 64


class Step(NamedTuple):
    """What one rule did: numbers of samples."""

    rule: str
    alone: int | None
    """Dropped if there were no other rule; None where that was not computed."""
    is_estimate: bool
    """Whether ``alone`` comes from a sample of all samples, since the score is dear."""
    failed: int
    """Of those that earlier rules left, samples that could not be scored: not kept, not dropped."""
    dropped: int
    """Dropped of those that earlier rules left."""
    left: int


@dataclass(frozen=True)
class Decision:
    """What becomes of every sample, shard by shard."""

    copies: list[UInt8[np.ndarray, "_"]]
    """How often a sample is kept; 0 for one that is not."""
    first: list[Int8[np.ndarray, "_"]]
    """Number of the first rule that dropped it or failed on it, -1 for a sample that is kept."""
    failing: list[UInt64[np.ndarray, "_"]]
    """Bit n is set where rule n alone would drop it, as far as it was scored."""
    steps: list[Step]
    failed: Faults

    @property
    def num_kept(self) -> int:
        """Samples that are kept, copies counted."""
        return sum(int(copies.sum(dtype=np.int64)) for copies in self.copies)


class Applied(NamedTuple):
    """What a rule makes of the rows that are left of each shard."""

    copies: list[np.ndarray]
    failed: list[Mask]


def decide(
    rules: Sequence[Rule], scored: ScoredSet, samples: Mapping[str, list[Mask] | None]
) -> Decision:
    """Return what becomes of every sample.

    A rule that compares samples with each other, such as ``exact_duplicate``, sees only those that
    earlier rules left; so the copy that it keeps does not fall later for an earlier rule.

    Args:
        rules: In their order.
        scored: What their filters said.
        samples: What ``score_in_rounds`` returned.
    """
    if len(rules) > MOST_RULES:
        raise UserError(f"There are {len(rules)} rules. Give at most {MOST_RULES}.")
    copies = [np.ones(len(keys), np.uint8) for keys in scored.keys]
    first = [np.full(len(keys), -1, np.int8) for keys in scored.keys]
    failing = [np.zeros(len(keys), np.uint64) for keys in scored.keys]
    steps, faults = [], Faults()
    for number, rule in enumerate(rules):
        alone, is_estimate = _alone(rule, scored, samples, failing, number)
        left = [own > 0 for own in copies]
        applied = apply(rule, scored, left)
        for n, was_left in enumerate(left):
            first[n][was_left & (applied.copies[n] == 0)] = number
            copies[n] = _product(copies[n], applied.copies[n], rule)
            _count_faults(faults, rule, scored, n, applied.failed[n])
        num_failed, num_left = _count(applied.failed), _count(own > 0 for own in copies)
        dropped = _count(left) - num_left - num_failed
        steps.append(Step(rule.text, alone, is_estimate, num_failed, dropped, num_left))
    return Decision(copies, first, failing, steps, faults)


def apply(rule: Rule, scored: ScoredSet, left: Sequence[Mask]) -> Applied:
    """Return how often a rule keeps each of the rows that are left, and which it failed on."""
    copies = [np.zeros(len(mask), np.uint8) for mask in left]
    failed = [np.zeros(len(mask), bool) for mask in left]
    for part in rule.parts:
        columns = scored.columns(part.column, left)
        for n, (column, kept) in enumerate(zip(columns, part.filter.keep(columns), strict=True)):
            copies[n] = np.maximum(copies[n], column.left * kept.astype(np.uint8))
            if not column.is_scored[left[n]].all():
                failed[n] |= left[n] & scored.failed(part.column, n)
    return Applied(copies, [f & (c == 0) for f, c in zip(failed, copies, strict=True)])


def _alone(
    rule: Rule,
    scored: ScoredSet,
    samples: Mapping[str, list[Mask] | None],
    failing: Sequence[np.ndarray],
    number: int,
) -> tuple[int | None, bool]:
    """Return how many samples a rule alone drops; mark them in ``failing``.

    Of a score that only a sample of the set has, it is an estimate; how many duplicates there are
    does not follow from a sample.
    """
    sample = next((own for p in rule.parts if (own := samples[p.column]) is not None), None)
    if sample is not None and not rule.is_pointwise:
        return None, True
    everything = scored.everything() if sample is None else sample
    applied = apply(rule, scored, everything)
    dropped = [
        own & (copies == 0) & ~failed
        for own, copies, failed in zip(everything, *applied, strict=True)
    ]
    for bits, own in zip(failing, dropped, strict=True):
        bits[own] |= np.uint64(1 << number)
    count = _count(dropped)
    if sample is None:
        return count, False
    total, drawn = scored.num_samples, _count(sample)
    return (round(count / drawn * total), True) if drawn else (None, True)


def _product(
    copies: UInt8[np.ndarray, "rows"], more: UInt8[np.ndarray, "rows"], rule: Rule
) -> UInt8[np.ndarray, "rows"]:
    product = copies.astype(np.uint16) * more
    if len(product) and product.max() > MOST:
        raise UserError(
            f"{rule.text} makes {product.max()} copies of a sample, with the rules before it. "
            f"At most {MOST} go into a set."
        )
    return product.astype(np.uint8)


def _count_faults(faults: Faults, rule: Rule, scored: ScoredSet, n: int, failed: Mask) -> None:
    for part in rule.parts if failed.any() else ():
        status = scored.status(part.column, n).to_pylist()
        for row in np.flatnonzero(failed):
            told = status[row] or ""
            if told.startswith(FAILED):
                reason = told.removeprefix(FAILED)
                faults.add(reason, scored.sources[n].name, scored.keys[n][row])


def _count(masks: Any) -> int:
    return sum(int(np.count_nonzero(mask)) for mask in masks)
