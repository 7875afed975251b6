"""Filters that count: shared captions and pictures, rare n-grams, MetaCLIP's balance."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from curation_support import columns, kept

from data_pipelines.curation import frequency
from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import read_rules
from data_pipelines.filters.caption_frequency import CaptionFrequency
from data_pipelines.filters.caption_ngrams import CaptionNgrams
from data_pipelines.filters.captions_per_image import CaptionsPerImage
from data_pipelines.filters.metaclip_balance import MetaclipBalance, t_of_tail, uniform
from vlp.errors import UserError
from vlp.types import Sample


def candidates(captions, images=None):
    images = images or [b"x"] * len(captions)
    return [
        Candidate.of(Sample(str(n), image, text, {}))
        for n, (text, image) in enumerate(zip(captions, images, strict=True))
    ]


def cut(values, at):
    """Return values as shards of these lengths."""
    ends = np.cumsum([0, *at])
    assert ends[-1] == len(values)
    return [values[start:end] for start, end in itertools.pairwise(ends)]


def flat(shards):
    return [bool(row) for shard in shards for row in shard]


def drawn_captions(count, seed=0):
    rng = random.Random(seed)
    words = [f"w{n}" for n in range(12)]
    return [
        " ".join(rng.choices(words, range(12, 0, -1), k=rng.randint(1, 3))) for _ in range(count)
    ]


@pytest.mark.parametrize("part", [frequency.PART, 50])
def test_a_caption_that_more_than_max_share_falls_altogether(part, monkeypatch):
    monkeypatch.setattr(frequency, "PART", part)
    captions = drawn_captions(300)
    scores = CaptionFrequency().score(candidates(captions))
    counts = Counter(captions)
    for limit in (1, 3, 10):
        own = CaptionFrequency(max=limit)
        expected = [counts[caption] <= limit for caption in captions]
        assert 0 < sum(expected) < 300
        for at in ([300], [100, 0, 150, 50]):
            assert flat(kept(own, *cut(scores, at))) == expected


def test_captions_are_counted_among_what_earlier_rules_left():
    scores = CaptionFrequency().score(candidates(["a", "a", "a", "b"]))
    assert kept(CaptionFrequency(max=2), scores) == [[False, False, False, True]]
    left = [[True, True, False, True]]
    assert kept(CaptionFrequency(max=2), scores, left=left) == [[True, True, False, True]]


def test_ten_pictures_may_share_a_caption_and_eleven_may_not():
    for count, stays in ((10, True), (11, False)):
        scores = CaptionFrequency().score(candidates(["same"] * count))
        assert kept(CaptionFrequency(), scores) == [[stays] * count]


def test_a_picture_with_too_many_captions_falls_altogether():
    images = [b"logo"] * 4 + [b"photo"] * 2
    scores = CaptionsPerImage().score(candidates(list("abcdef"), images))
    assert flat(kept(CaptionsPerImage(max=3), *cut(scores, [3, 3]))) == [False] * 4 + [True] * 2
    assert flat(kept(CaptionsPerImage(), scores)) == [True] * 6


def naive_ngrams(caption, longest):
    words = caption.lower().split()
    return [
        tuple(words[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    ]


@pytest.mark.parametrize("part", [frequency.PART, 100])
@pytest.mark.parametrize("longest", [1, 2])
def test_a_caption_stays_if_all_its_ngrams_are_of_the_most_frequent(longest, part, monkeypatch):
    monkeypatch.setattr(frequency, "PART", part)
    captions = drawn_captions(300)
    scores = CaptionNgrams(longest=longest).score(candidates(captions))
    counts = Counter(ngram for own in captions for ngram in naive_ngrams(own, longest))
    for size in (1, 5, 11, 1000):
        ranked = sorted(counts.values(), reverse=True)
        least = ranked[size - 1] if size <= len(ranked) else 1
        expected = [
            all(counts[ngram] >= least for ngram in naive_ngrams(own, longest)) for own in captions
        ]
        own = CaptionNgrams(size=size, longest=longest)
        assert flat(kept(own, *cut(scores, [120, 180]))) == expected
    assert all(expected)


def test_ngrams_are_counted_in_the_whole_pool_whatever_case_they_are_in():
    part = CaptionNgrams(size=1, longest=1)
    scores = part.score(candidates(["Rare", "common", "COMMON", "rare rare"]))
    left = [[True, True, False, False]]
    assert kept(part, scores, left=left) == [[True, False, False, False]]
    assert part.needs_pool


@pytest.fixture
def entries(tmp_path):
    (tmp_path / "entries.txt").write_text("dog\nhot dog\nred\n\nu.s.\nnew\tyork\ndog\n")
    return str(tmp_path / "entries.txt")


@pytest.mark.parametrize(
    ("caption", "matched"),
    [
        ("a dog", [0]),
        ("hot dog, red", [0, 1, 2]),
        ("dogs and hotdog", []),
        ("Dog", []),
        ("red dog!red", [0, 2]),
        ("hot\tdog", [0, 1]),
        ("hot  dog", [0]),
        ("the u.s. dog", [0]),
        ("(dog)", []),
    ],
)
def test_an_entry_is_matched_between_spaces_with_signs_set_apart(entries, caption, matched):
    (found,) = MetaclipBalance(entries=entries).score(candidates([caption]))
    assert found == matched
    assert found == naive_matches(caption, ["dog", "hot dog", "red", "u.s.", "new\tyork"])


def naive_matches(text, entries):
    text = f" {text} "
    for sign in ",.;:?!`":
        text = text.replace(sign, f" {sign} ")
    text = text.replace("\t", " ").replace("\n", " ").replace("\r", " ")
    return [number for number, entry in enumerate(entries) if f" {entry} " in text]


def balance_set(seed=0, count=4000):
    """Lists of entries with a long tail, some empty."""
    rng = random.Random(seed)
    weights = [1 / (n + 1) for n in range(20)]
    return [sorted(set(rng.choices(range(20), weights, k=rng.randint(0, 3)))) for _ in range(count)]


def test_a_sample_stays_if_any_of_its_entries_draws_it(entries):
    lists, t, seed = balance_set(), 100, 3
    counts = Counter(entry for own in lists for entry in own)
    part = MetaclipBalance(entries=entries, t=t, seed=seed)
    (given,) = columns(lists)
    draws = iter(uniform(*_pairs(given), seed))
    expected = [any([next(draws) < t / max(counts[e], t) for e in own]) for own in lists]
    assert flat(kept(part, *cut(lists, [1000, 0, 3000]), keys=_keys([1000, 0, 3000]))) == expected


def _pairs(column):
    from data_pipelines.curation.candidates import hash64

    ids = np.array([hash64(key) for key in column.keys], np.uint64)
    return ids[column.entries[0]], column.entries[1]


def _keys(at):
    return cut([str(n) for n in range(sum(at))], at)


def test_the_share_that_stays_is_one_minus_the_product_of_what_each_entry_leaves_out(entries):
    lists, t = balance_set(count=20_000), 500
    counts = Counter(entry for own in lists for entry in own)
    stays = flat(kept(MetaclipBalance(entries=entries, t=t), lists))
    chances = np.array([1 - np.prod([1 - t / max(counts[e], t) for e in own]) for own in lists])
    deviation = np.sqrt((chances * (1 - chances)).sum())
    assert abs(sum(stays) - chances.sum()) < 4 * deviation
    assert not any(stay for stay, own in zip(stays, lists, strict=True) if not own)
    rare = [n for n, own in enumerate(lists) if any(counts[entry] <= t for entry in own)]
    assert rare
    assert all(stays[n] for n in rare)


def test_entries_are_counted_among_what_earlier_rules_left(entries):
    lists = [[0]] * 40 + [[7]] * 10 + [[]] * 2
    part = MetaclipBalance(entries=entries, t=5)
    rest = [[True] * 5 + [False] * 45 + [True] * 2]
    assert kept(part, lists, left=rest) == [[True] * 5 + [False] * 47]
    assert kept(part, lists, left=[[False] * 52]) == [[False] * 52]
    assert kept(part, lists, [], left=[[True] * 52, []])[1] == []


def test_another_seed_draws_others_and_shards_change_nothing(entries):
    lists = balance_set()
    one, other = (flat(kept(MetaclipBalance(entries=entries, t=50, seed=s), lists)) for s in (0, 1))
    assert one != other
    cuts = cut(lists, [7, 3993])
    keys = _keys([7, 3993])
    assert flat(kept(MetaclipBalance(entries=entries, t=50), *cuts, keys=keys)) == one
    swapped = kept(MetaclipBalance(entries=entries, t=50), *cuts[::-1], keys=keys[::-1])
    assert flat(swapped[::-1]) == one


def test_entries_that_only_dropped_samples_match_are_not_counted(entries):
    lists = [[0, 1], [19], [1]]
    assert kept(MetaclipBalance(entries=entries, t=9), lists, left=[[1, 0, 1]]) == [[1, 0, 1]]


def test_draws_are_spread_evenly_and_do_not_follow_each_other():
    ids = np.arange(100_000, dtype=np.uint64)
    one, other = (uniform(ids, np.full(len(ids), entry), 0) for entry in (0, 1))
    assert np.abs(np.histogram(one, 20, (0, 1))[0] / 5000 - 1).max() < 0.07
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert one.min() >= 0
    assert one.max() < 1


def test_t_is_the_count_up_to_which_the_tail_holds_its_share():
    assert t_of_tail(np.array([94, 3, 1, 2, 0]), 0.06) == 3
    assert t_of_tail(np.array([94, 3, 1, 2, 0]), 1.0) == 94
    assert t_of_tail(np.zeros(3, np.int64), 0.06) == 1
    counts = np.array(list(Counter(e for own in balance_set() for e in own).values()))
    t = t_of_tail(counts, 0.2)
    held = [counts[counts <= other].sum() / counts.sum() for other in counts]
    assert counts[counts <= t].sum() / counts.sum() == min(held, key=lambda h: abs(h - 0.2))


def test_another_file_of_entries_is_another_identity(tmp_path, entries):
    (tmp_path / "other.txt").write_text("dog\n")
    one, other = MetaclipBalance(entries=entries), MetaclipBalance(entries=f"{tmp_path}/other.txt")
    assert one.identity() != other.identity()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: MetaclipBalance(entries=e, t=5, tail=0.1), "two ways to say the same"),
        (lambda e: MetaclipBalance(entries=e, t=0), "t=0 keeps nothing"),
        (lambda e: MetaclipBalance(entries=e, tail=1.5), "tail=1.5 is no share"),
        (
            lambda e: MetaclipBalance(entries=e + "x").identity(),
            r"Cannot read .*entries\.txtx: No such file or directory\.",
        ),
        (lambda e: CaptionFrequency(max=0), "max=0 leaves no caption"),
        (lambda e: CaptionsPerImage(max=0), "max=0 leaves no picture"),
        (lambda e: CaptionNgrams(size=0), "size=0 leaves nothing"),
    ],
)
def test_options_that_keep_nothing_are_refused(entries, make, message):
    with pytest.raises(UserError, match=message):
        make(entries)


def test_the_preset_align_is_what_the_paper_drops():
    texts = [rule.text for rule in read_rules(["align(size=5)"])]
    assert texts[-1] == "caption_ngrams(size=5)"
    filters = [rule.parts[0].filter for rule in read_rules(["align"])]
    assert filters[0].min == 201
    assert (filters[2].min, filters[2].max) == (3, 20)
    assert filters[-1].size == 100_000_000
