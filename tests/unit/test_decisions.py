"""Thresholds and shares over the whole set, and a cascade that keeps what scoring all would."""

import itertools
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from curation_support import kept, many, sample

from data_pipelines.curation import cascade
from data_pipelines.curation.cascade import score_in_rounds
from data_pipelines.curation.columns import cutoff
from data_pipelines.curation.decide import decide
from data_pipelines.curation.rules import BoundedFilter, Cost, Filter, Part, Rule
from data_pipelines.curation.scores import open_scores, score
from data_pipelines.engine import Engine
from data_pipelines.faults import SampleFault
from data_pipelines.filters.caption_words import CaptionWords
from data_pipelines.shards import write_shards
from vlp.errors import UserError

ODD = [0.0, -0.0, 5e-324, -5e-324, 1e-310, -1e-310, 1.0, -1.0, np.inf, -np.inf, 1e308, 3.0, 3.0]


def numbers(count, rng):
    """Return numbers that are hard to order: of all sizes and signs, with ties."""
    parts = [
        rng.choice(ODD, count),
        rng.normal(size=count),
        rng.integers(-3, 3, count).astype(float),
        np.frombuffer(rng.bytes(8 * count), np.float64),
    ]
    found = np.concatenate(parts)
    return rng.permutation(found[~np.isnan(found)])[:count]


@pytest.mark.parametrize("seed", range(12))
def test_the_cutoff_is_that_of_a_sort_for_any_numbers_in_any_parts(seed):
    rng = np.random.default_rng(seed)
    values = numbers(int(rng.integers(1, 60)), rng)
    parts = np.array_split(values, rng.integers(1, 5))
    share = rng.integers(1, 101) / 100
    falling, rank = np.sort(values)[::-1], int(share * len(values) + 1e-6)
    assert cutoff(parts, share) == falling[max(1, rank) - 1]
    after = np.inf if not rank else falling[rank] if rank < len(values) else -np.inf
    assert cutoff(parts, share, below=True) == after


def test_a_share_of_nothing_has_no_cutoff():
    assert cutoff([], 0.3) == cutoff([np.empty(0)], 0.3) == -np.inf


def test_top_is_a_share_of_all_shards_and_not_of_each():
    assert kept(CaptionWords(min=None, top=0.3), [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == [
        [0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1],
    ]


def test_top_keeps_no_sample_too_many_but_every_tie():
    for percent in (1, 7, 28, 29, 30, 57, 58, 99, 100):  # DataComp's own script keeps one more
        (mask,) = kept(CaptionWords(min=None, top=percent / 100), list(range(100)))
        assert sum(mask) == percent
    assert kept(CaptionWords(min=None, top=0.25), [1, 2, 2, 2]) == [[0, 1, 1, 1]]


def test_a_band_leaves_out_the_highest():
    (mask,) = kept(CaptionWords(min=None, top=(0.02, 0.3)), list(range(100)))
    assert np.flatnonzero(mask).tolist() == list(range(70, 98))
    few = kept(CaptionWords(min=None, top=(0.02, 0.3)), list(range(10)))
    assert few == [[0] * 7 + [1] * 3]  # 2 % of ten is none


def test_a_share_is_of_the_pool_or_of_what_is_left():
    left = [[0, 0, 1, 1, 1, 1, 1, 1]]
    values = [8.0, 7, 6, 5, 4, 3, 2, 1]
    assert kept(CaptionWords(min=None, top=0.5), values, left=left) == [[0, 0, 1, 1, 0, 0, 0, 0]]
    of_left = CaptionWords(min=None, top=0.5, of="left")
    assert kept(of_left, values, left=left) == [[0, 0, 1, 1, 1, 0, 0, 0]]


def test_what_failed_is_outside_the_pool_and_no_large_number_is_lost():
    values = [None, None, 2**60, 2**60 + 2**40, 1]
    assert kept(CaptionWords(min=None, top=0.34), values) == [[0, 0, 0, 1, 0]]
    assert kept(CaptionWords(min=None, top=0.5), [None, None], [True, False]) == [[0, 0], [1, 0]]


@dataclass(frozen=True, kw_only=True)
class Drawn(BoundedFilter):
    """A number that follows from the key and a seed; one in seven cannot be scored."""

    deciding: ClassVar[tuple[str, ...]] = (*BoundedFilter.deciding, "asked")
    seed: int = 0
    asked: set | None = None

    def score(self, candidates):
        found = []
        for one in candidates:
            if self.asked is not None:
                self.asked.add(one.key)
            rng = random.Random(f"{self.seed} {one.key}")
            if rng.random() < 1 / 7:
                raise SampleFault("it cannot be drawn")
            found.append(rng.randint(0, 9))
        return found


@dataclass(frozen=True, kw_only=True)
class Encoded(Drawn):
    cost: ClassVar[Cost] = Cost.MODEL


@dataclass(frozen=True, kw_only=True)
class Read(Drawn):
    cost: ClassVar[Cost] = Cost.READING


@dataclass(frozen=True, kw_only=True)
class FirstOfEqual(Drawn):
    """Compares samples: of equal numbers the first that is left stays."""

    cost: ClassVar[Cost] = Cost.MODEL

    @property
    def is_pointwise(self):
        return False

    def keep(self, columns):
        seen = set()
        for column in columns:
            mask = np.zeros(len(column.left), bool)
            for row in np.flatnonzero(column.left):
                mask[row] = column.numbers[row] not in seen
                seen.add(column.numbers[row])
            yield mask


def some_rules(rng):
    """Return random rules of all costs."""

    def part():
        kind = rng.choice([Drawn, Encoded, Read, FirstOfEqual])
        bounds = [{"min": 2}, {"top": 0.6}, {"top": 0.6, "of": "left"}, {"top": (0.1, 0.8)}]
        options = {"seed": rng.randint(0, 3), "asked": set(), **rng.choice(bounds)}
        return Part(f"{kind.__name__}(seed={options['seed']})", kind(**options))

    return [
        Rule(f"rule {n}", tuple(part() for _ in range(rng.choice([1, 1, 2]))))
        for n in range(rng.randint(1, 4))
    ]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_shards(many(60), folder, samples_per_shard=25)
    return sorted(folder.glob("*.tar"))


def decided(rules, raw, folder):
    scored = open_scores(raw, folder)
    samples = score_in_rounds(Engine(kind="inline"), rules, scored, seed=0)
    return decide(rules, scored, samples), samples, scored


@pytest.mark.parametrize("seed", range(6))
def test_a_cascade_keeps_what_scoring_everything_would(raw, tmp_path, monkeypatch, seed):
    rules = some_rules(random.Random(seed))
    found, _, scored = decided(rules, raw, tmp_path / "cascade")
    for number, rule in enumerate(rules):  # whatever comes to a rule has been scored for it
        for n, first in enumerate(found.first):
            came = (first == -1) | (first >= number)
            for column in (part.column for part in rule.parts):
                assert not (came & np.asarray(scored.status(column, n).is_null())).any()
    monkeypatch.setattr(cascade, "_asks_all", lambda part: True)
    everything, _, _ = decided(rules, raw, tmp_path / "all")
    assert [own.tolist() for own in found.copies] == [own.tolist() for own in everything.copies]
    assert [own.tolist() for own in found.first] == [own.tolist() for own in everything.first]
    assert [step[3:] for step in found.steps] == [step[3:] for step in everything.steps]


@pytest.mark.parametrize("needs_picture", [False, True])
def test_filters_score_in_the_order_of_their_rules(raw, tmp_path, needs_picture):
    order = []

    class Noting(Drawn):
        def score(self, candidates):
            order.append(self.seed)
            return [0] * len(candidates)

    Noting.needs_picture = needs_picture
    filters = {f"noting {n}": Noting(min=0, seed=n) for n in range(9)}
    rows = [np.ones(25, bool)]
    score(
        Engine(kind="inline"), open_scores(raw[:1], tmp_path), filters, dict.fromkeys(filters, rows)
    )
    assert list(dict.fromkeys(order)) == list(range(9))


def test_a_dear_filter_is_asked_about_what_is_left_and_a_seeded_sample(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(cascade, "SAMPLED", 0.2)
    dear, cheap = Read(min=5, seed=1, asked=set()), Drawn(min=8, seed=2)
    rules = [Rule("cheap", (Part("cheap", cheap),)), Rule("dear", (Part("dear", dear),))]
    found, samples, scored = decided(rules, raw, tmp_path / "scores")
    keys = np.concatenate(scored.keys)
    left, sampled = np.concatenate(found.first) != 0, np.concatenate(samples["dear"])
    assert 0 < sampled.sum() < 30 > left.sum()
    assert dear.asked == set(keys[left | sampled])
    alone = [random.Random(f"1 {key}") for key in keys[sampled]]
    dropped = sum(rng.random() >= 1 / 7 and rng.randint(0, 9) < 5 for rng in alone)
    step = found.steps[1]
    assert (step.alone, step.is_estimate) == (round(dropped / sampled.sum() * 60), True)
    assert (found.steps[0].is_estimate, samples["cheap"]) == (False, None)
    again = decided(rules, raw, tmp_path / "scores")[1]
    assert all((a == b).all() for a, b in zip(again["dear"], samples["dear"], strict=True))


def test_a_share_of_the_pool_is_of_all_samples_though_the_filter_is_dear(raw, tmp_path):
    asked = set()
    both = [Encoded(top=0.5, seed=1, asked=asked), Encoded(min=0, seed=1, asked=asked)]
    rules = [
        Rule("cheap", (Part("cheap", Drawn(min=8)),)),
        *(Rule(f"dear {n}", (Part("dear", part),)) for n, part in enumerate(both)),
    ]
    found, samples, scored = decided(rules, raw, tmp_path / "scores")
    assert len(asked) == 60
    assert samples["dear"] is None
    assert not any(step.is_estimate for step in found.steps)
    failed = sum(int(scored.failed("dear", n).sum()) for n in range(3))
    assert found.steps[1].alone <= (60 - failed) - (60 - failed) // 2


def test_any_of_keeps_what_any_part_keeps_and_fails_what_none_can_keep(raw, tmp_path):
    parts = (Part("one", Drawn(min=5, seed=1)), Part("two", Drawn(min=5, seed=2)))
    found, _, scored = decided([Rule("any", parts)], raw, tmp_path / "scores")
    counts = [0, 0]
    for n, first in enumerate(found.first):
        values = [list(scored.columns(name, scored.everything()))[n] for name in ("one", "two")]
        keeps = np.logical_or(*(np.nan_to_num(v.numbers, nan=-1) >= 5 for v in values))
        assert ((first == -1) == keeps).all()
        fails = ~keeps & ~np.logical_and(*(v.is_scored for v in values))
        counts[0] += int(fails.sum())
        counts[1] += int((~keeps & ~fails).sum())
    assert (found.steps[0].failed, found.steps[0].dropped) == tuple(counts)


def test_duplicates_are_decided_among_what_earlier_rules_left(tmp_path):
    write_shards([sample("a", "one"), sample("b", "one two")], tmp_path)
    both = {
        "words": Part("words", CaptionWords(min=2)),
        "same": Part("same", Constant(min=0)),
    }
    for order in itertools.permutations(both):
        rules = [Rule(name, (both[name],)) for name in order]
        found, _, _ = decided(rules, [tmp_path / "000000.tar"], tmp_path / "scores")
        survivors = {"words": [0, 1], "same": [0, 0]}[order[0]]
        assert found.copies[0].tolist() == survivors


@dataclass(frozen=True, kw_only=True)
class Constant(FirstOfEqual):
    """All are equal."""

    def score(self, candidates):
        return [0] * len(candidates)


def test_a_value_that_is_no_number_fails(tmp_path):
    class Broken(Filter):
        @property
        def is_pointwise(self):
            return True

        def score(self, candidates):
            return [float("nan") if one.key == "a" else 1.0 for one in candidates]

        def keep(self, columns):
            return (column.is_scored for column in columns)

    write_shards([sample("a"), sample("b")], tmp_path)
    rules = [Rule("broken", (Part("broken", Broken()),))]
    found, _, scored = decided(rules, [tmp_path / "000000.tar"], tmp_path / "scores")
    assert found.copies[0].tolist() == [0, 1]
    assert scored.status("broken", 0).to_pylist() == ["failed: broken is no number", "ok"]
    assert found.failed.summary() == "1 broken is no number"


def test_more_rules_than_a_decision_can_tell_apart_are_refused(raw, tmp_path):
    rule = Rule("words", (Part("words", CaptionWords()),))
    with pytest.raises(UserError, match="There are 65 rules"):
        decided([rule] * 65, raw[:1], tmp_path / "scores")


def test_what_an_earlier_run_scored_beside_changes_nothing(raw, tmp_path):
    both = ["caption_words(min=3)", "dear"]
    rules = [
        Rule(both[0], (Part("cheap", Drawn(min=8)),)),
        Rule(both[1], (Part("dear", Encoded(min=0, seed=1)),)),
    ]
    decided(rules[1:], raw, tmp_path / "used")  # asks the dear filter about everything
    _, _, used = decided(rules, raw, tmp_path / "used")
    _, _, fresh = decided(rules, raw, tmp_path / "fresh")
    for shard in range(len(raw)):
        assert used.read(shard, "dear") == fresh.read(shard, "dear")
        assert used.status("dear", shard) == fresh.status("dear", shard)
    assert any(used.read(shard, "dear").null_count for shard in range(len(raw)))
