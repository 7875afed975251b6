"""Which samples each filter is asked about: dear scores are of samples that cheaper rules left.

A filter of one cost sees the rows that the rules before it, as far as they are scored by then, are
certain to leave, and a seeded share of all others, from which the report says what the rule alone
would drop. What is kept in the end is the same as if everything had been scored.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.curation.candidates import hash64
from data_pipelines.curation.decide import apply
from data_pipelines.curation.rules import Cost, Filter, Rule, parts_of
from data_pipelines.curation.scores import ScoredSet, score
from data_pipelines.curation.sheet import Mask
from data_pipelines.engine import Engine

SAMPLED = 0.01
"""Share of all samples that dear filters are asked about whatever other rules say."""


def score_in_rounds(
    engine: Engine, rules: Sequence[Rule], scored: ScoredSet, *, seed: int
) -> dict[str, list[Mask] | None]:
    """Score what the rules need, cheap filters first.

    Returns:
        By column, the rows of the seeded sample, or None for a filter that was asked about all.
    """
    for part in parts_of(rules).values():
        part.identity()  # who named a model that is not there need not wait until it is asked
    sample: list[Mask] = []
    done: set[str] = set()
    samples: dict[str, list[Mask] | None] = {}
    for is_for_all, filters in _rounds(rules):
        if not is_for_all and not sample:
            sample = [_drawn(keys, seed) for keys in scored.keys]
        wanted = {}
        for column in filters:
            rows = scored.everything()
            if not is_for_all:
                rows = _needed(column, rules, done, scored, sample)
            wanted[column] = rows
            samples[column] = None if all(mask.all() for mask in rows) else sample
        score(engine, scored, filters, wanted)
        done |= set(filters)
    return samples


def _rounds(rules: Sequence[Rule]) -> Iterator[tuple[bool, dict[str, Filter]]]:
    """Yield the filters of each round by their columns, and whether they are asked about all.

    Those that are come first, so that a picture is decoded once for them.
    """
    parts = [part for rule in rules for part in rule.parts]
    everywhere = {column for column, part in parts if _asks_all(part)}
    if everywhere:
        yield True, {column: part for column, part in parts if column in everywhere}
    for cost in Cost:
        filters = {c: part for c, part in parts if c not in everywhere and part.cost == cost}
        if filters:
            yield False, filters


def _needed(
    column: str, rules: Sequence[Rule], done: set[str], scored: ScoredSet, sample: Sequence[Mask]
) -> list[Mask]:
    """Return the rows that a filter is asked about: what may come to it, and the sample."""
    places = [n for n, rule in enumerate(rules) if column in dict(rule.parts)]
    needed = [_certain(rules[:place], done, scored) for place in places]
    return [np.logical_or.reduce(masks) for masks in zip(*needed, sample, strict=True)]


def _asks_all(part: Filter) -> bool:
    return part.cost < Cost.MODEL or part.needs_pool


def _certain(rules: Sequence[Rule], done: set[str], scored: ScoredSet) -> list[Mask]:
    """Return the rows that rules leave, as far as that is certain by the columns that are done.

    A rule that compares samples is certain only if all rules before it are: a sample that one of
    them still drops would no longer be compared.
    """
    left, is_complete = scored.everything(), True
    for rule in rules:
        is_done = all(part.column in done for part in rule.parts)
        if is_done and (is_complete or rule.is_pointwise):
            left = [mask > 0 for mask in apply(rule, scored, left).copies]
        else:
            is_complete = False
    return left


def _drawn(keys: Sequence[str], seed: int) -> Mask:
    limit = int(SAMPLED * 2**64)
    return np.array([hash64(f"{seed} {key}") < limit for key in keys], bool)
