"""Filters: scores are written down, decided over the whole set, and the report adds up."""

import io
import itertools
import json
import os
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_pipelines.scores import ShardScores, score_shards
from PIL import Image

from data_pipelines.filter import FAMILY, Column, decide, filter_shards, read_rules
from data_pipelines.filters.caption_words import CaptionWords
from data_pipelines.filters.exact_duplicate import ExactDuplicate
from data_pipelines.filters.image_side import ImageSide
from data_pipelines.shards import open_shards, write_shards
from vlp.errors import UserError
from vlp.image import ImageError
from vlp.spec import build, names
from vlp.types import Sample


def picture(width=300, height=300, colour="red"):
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "PNG")
    return data.getvalue()


def sample(key, text="a red square", image=None, **metadata):
    return Sample(key, picture() if image is None else image, text, metadata)


def raw_shards(tmp_path, samples, samples_per_shard=2):
    write_shards(samples, tmp_path / "raw", samples_per_shard=samples_per_shard)
    return str(tmp_path / "raw")


def run(tmp_path, samples, *keep, **options):
    report = filter_shards(raw_shards(tmp_path, samples), tmp_path / "clean", keep=keep, **options)
    return [s.key for s in open_shards(tmp_path / "clean")], report


def column(values, left=None, first=0):
    values = np.array(values)
    return Column(values, np.ones(len(values), bool) if left is None else np.array(left), first)


def kept(part, *columns):
    reduced = part.reduce([part.summarise(c) for c in columns])
    return [(c.left & part.keep(c, reduced)).tolist() for c in columns]


def many(count=40):
    """Samples of few sizes and captions, so that there are duplicates of every kind."""
    rng = random.Random(0)
    sides = [20 + rng.randint(0, 3) for _ in range(count)]
    captions = [" ".join(["word"] * rng.randint(1, 5)) for _ in range(count)]
    return [
        sample(str(n), text, picture(side, side))
        for n, (text, side) in enumerate(zip(captions, sides, strict=True))
    ]


@pytest.mark.parametrize("name", names(FAMILY))
def test_a_score_depends_on_its_sample_alone(name):
    scorer, samples = build(FAMILY, name), many(12)
    together = list(scorer.score(samples))
    apart = [value for one in samples for value in scorer.score([one])]
    backwards = list(scorer.score(samples[::-1]))[::-1]
    assert together == apart == backwards


@pytest.mark.parametrize("name", names(FAMILY))
def test_a_decision_does_not_depend_on_the_order_of_the_summaries(name):
    part, samples = build(FAMILY, name), many(12)
    pieces = [
        column(part.score(samples[start : start + 4]), first=start) for start in range(0, 12, 4)
    ]
    summaries = [part.summarise(piece) for piece in pieces]
    results = {
        tuple(tuple(part.keep(piece, part.reduce(order))) for piece in pieces)
        for order in itertools.permutations(summaries)
    }
    assert len(results) == 1


def test_caption_words_counts_words_between_white_space():
    captions = ["", "one", "a  red\tsquare\n", "well-known facts, all"]
    scores = CaptionWords().score([sample("k", text) for text in captions])
    assert scores == [0, 1, 3, 3]
    assert kept(CaptionWords(), column(scores)) == [[False, False, True, True]]


def test_image_side_is_the_shorter_side_and_0_beyond_the_aspect():
    sizes = [(200, 600), (600, 200), (199, 199), (200, 601)]
    scores = ImageSide().score([sample("k", image=picture(*size)) for size in sizes])
    assert scores == [200, 200, 199, 0]
    assert kept(ImageSide(), column(scores)) == [[True, True, False, False]]


def test_image_side_reads_no_further_than_the_header():
    assert ImageSide().score([sample("k", image=picture()[:64])]) == [300]
    with pytest.raises(ImageError, match="image is empty"):
        ImageSide().score([sample("k", image=b"")])


@pytest.mark.parametrize(
    ("by", "expected"), [("image", "abd"), ("caption", "ac"), ("pair", "abcd")]
)
def test_exact_duplicate_compares_what_it_is_told_to(by, expected):
    red, blue, green = (picture(colour=c) for c in ("red", "blue", "green"))
    samples = [
        sample("a", "one", red),
        sample("b", "one", blue),
        sample("c", "two", red),
        sample("d", "two", green),
        sample("e", "two", green),
    ]
    part = ExactDuplicate(by=by)
    (mask,) = kept(part, column(part.score(samples)))
    assert "".join(s.key for s, stays in zip(samples, mask, strict=True) if stays) == expected


def test_the_first_of_equals_stays_among_those_that_earlier_rules_left():
    one = column(["x", "y"], left=[False, True], first=0)
    two = column(["y", "x", "x"], first=2)
    assert kept(ExactDuplicate(), one, two) == [[False, True], [False, True, False]]


def test_exact_duplicate_agrees_with_a_naive_loop():
    samples = many()
    part, seen, expected = ExactDuplicate(by="pair"), set(), []
    for one in samples:
        expected.append((one.image, one.text) not in seen)
        seen.add((one.image, one.text))
    masks = kept(part, *(column(part.score(samples[n : n + 7]), first=n) for n in range(0, 40, 7)))
    assert list(itertools.chain(*masks)) == expected


def test_top_is_a_share_of_all_shards_and_not_of_each():
    low, high = column([1, 2, 3, 4, 5]), column([6, 7, 8, 9, 10])
    assert kept(CaptionWords(min=None, top=0.3), low, high) == [
        [False] * 5,
        [False, False, True, True, True],
    ]


def test_top_keeps_no_sample_too_many_but_every_tie():
    hundred = column(list(range(100)))
    for percent in range(1, 101):
        (mask,) = kept(CaptionWords(min=None, top=percent / 100), hundred)
        assert sum(mask) == percent
    assert kept(CaptionWords(min=None, top=0.25), column([1, 2, 2, 2])) == [
        [False, True, True, True]
    ]


def test_top_does_not_depend_on_the_rules_before_it():
    shards = [ShardScores([None] * 4, {"caption_words": np.array([1, 2, 3, 4])})]  # type: ignore
    rules = read_rules(["caption_words(min=1, max=2)", "caption_words(min=None, top=0.5)"])
    masks, steps = decide(rules, shards)
    assert not masks[0].any()
    assert [tuple(step)[1:] for step in steps] == [(2, 2, 2), (2, 2, 0)]


@pytest.mark.parametrize("shift", [1, 3])
def test_decisions_do_not_depend_on_how_samples_are_cut_into_shards(tmp_path, shift):
    keep = ("caption_words(min=2)", "image_side(min=21, top=0.7)", "exact_duplicate(by='pair')")
    samples, results = many(), []
    for size in (4, 4 + shift):
        write_shards(samples, tmp_path / f"raw{size}", samples_per_shard=size)
        clean = tmp_path / f"clean{size}"
        filter_shards(str(tmp_path / f"raw{size}"), clean, keep=keep)
        results.append((clean / "000000.tar").read_bytes())
    assert results[0] == results[1]


def test_what_is_kept_is_copied_byte_for_byte_in_order_and_numbered_without_gaps(tmp_path):
    samples = [sample(str(n), "short" if n % 3 == 0 else "a long caption") for n in range(9)]
    keys, report = run(tmp_path, samples, "caption_words", samples_per_shard=4)
    assert keys == ["1", "2", "4", "5", "7", "8"]
    clean = tmp_path / "clean"
    assert list(open_shards(clean)) == [samples[int(key)] for key in keys]
    assert sorted(p.name for p in clean.glob("*.tar")) == ["000000.tar", "000001.tar"]
    assert (report["samples_in"], report["samples_out"], report["shards_out"]) == (9, 6, 2)


def test_the_report_says_what_each_rule_drops_alone_and_in_order(tmp_path):
    short, tiny = "one", picture(10, 10)
    samples = [sample("a", short, tiny), sample("b", short), sample("c"), sample("d", image=tiny)]
    keys, report = run(tmp_path, samples, "caption_words(min=2)", "image_side")
    assert keys == ["c"]
    assert report["rules"] == [
        {"rule": "caption_words(min=2)", "alone": 2, "dropped": 2, "left": 2},
        {"rule": "image_side", "alone": 2, "dropped": 1, "left": 1},
    ]
    assert json.loads((tmp_path / "clean" / "report.json").read_text()) == report


def test_what_cannot_be_scored_is_failed_not_filtered_and_outside_the_pool(tmp_path):
    samples = [
        sample("broken", "a very very long caption", b"\xff\xd8 no picture"),
        sample("a", "one two three"),
        sample("b", "one two"),
        sample("empty", "another very very long caption", b""),
    ]
    keys, report = run(tmp_path, samples, "caption_words(top=0.5)", "image_side")
    assert keys == ["a"]
    assert {reason: fault["count"] for reason, fault in report["failed"].items()} == {
        "image format is not known": 1,
        "image is empty": 1,
    }
    assert [step["dropped"] for step in report["rules"]] == [1, 0]


def test_scores_have_a_row_for_every_sample_with_its_status(tmp_path):
    samples = [sample("a"), sample("b", image=b"broken")]
    run(tmp_path, samples, "image_side", "caption_words(min=1)", "caption_words(max=9)")
    table = pq.read_table(tmp_path / "clean" / "scores" / "000000.parquet").to_pydict()
    assert table == {
        "key": ["a", "b"],
        "caption_words": [3, None],
        "image_side": [300, None],
        "status": ["ok", "failed: image format is not known"],
    }


def test_other_thresholds_and_orders_do_not_score_again(tmp_path):
    samples = many()
    _, first = run(tmp_path, samples, "caption_words(min=2)", "image_side(min=1)")
    raw, clean = str(tmp_path / "raw"), tmp_path / "clean"
    keep = ("image_side(min=21)", "caption_words(min=1, top=0.5)")
    second = filter_shards(raw, clean, keep=keep, overwrite=True)
    assert (first["scores_reused"], second["scores_reused"]) == (0, 20)
    fresh = filter_shards(raw, tmp_path / "fresh", keep=keep)
    assert fresh["scores_reused"] == 0
    assert fresh["rules"] == second["rules"]
    tars = [(folder / "000000.tar").read_bytes() for folder in (clean, tmp_path / "fresh")]
    assert tars[0] == tars[1]


@pytest.mark.parametrize("keep", ["image_side(min=1, max_aspect=2.0)", "exact_duplicate"])
def test_another_way_to_score_scores_again(tmp_path, keep):
    raw, clean = raw_shards(tmp_path, many()), tmp_path / "clean"
    filter_shards(raw, clean, keep=["image_side(min=1)"])
    report = filter_shards(raw, clean, keep=["image_side(min=1)", keep], overwrite=True)
    assert report["scores_reused"] == 0


def test_only_a_changed_shard_is_scored_again(tmp_path):
    raw = raw_shards(tmp_path, many(6))
    filter_shards(raw, tmp_path / "clean", keep=["caption_words(min=1)"])
    os.utime(tmp_path / "raw" / "000001.tar", ns=(1, 1))
    (tmp_path / "clean" / "scores" / "000002.parquet").write_bytes(b"damaged")
    report = filter_shards(raw, tmp_path / "clean", keep=["caption_words(min=1)"])
    assert report["scores_reused"] == 1


def test_the_marks_of_the_toy_world_are_hidden_from_filters_and_kept_in_the_shards(tmp_path):
    class Curious:
        def score(self, samples):
            return [float("planted" in s.metadata or "a" not in s.metadata) for s in samples]

    shards = open_shards(raw_shards(tmp_path, [sample("k", planted="tiny_image", a=1)]))
    scored = score_shards(shards, {"c": Curious()}, tmp_path / "s", earlier=tmp_path / "none")
    assert scored.shards[0].columns["c"].tolist() == [0.0]
    filter_shards(str(tmp_path / "raw"), tmp_path / "clean", keep=["caption_words"])
    (only,) = open_shards(tmp_path / "clean")
    assert only.metadata == {"planted": "tiny_image", "a": 1}
    assert "planted" not in (tmp_path / "clean" / "report.json").read_text()


def test_a_score_that_is_no_number_fails(tmp_path):
    class Broken:
        def score(self, samples):
            return [float("nan") if s.key == "a" else 1.0 for s in samples]

    shards = open_shards(raw_shards(tmp_path, [sample("a"), sample("b")]))
    scored = score_shards(shards, {"it": Broken()}, tmp_path / "s", earlier=tmp_path / "none")
    assert [entry.key for entry in scored.shards[0].entries] == ["b"]
    assert scored.failed.summary() == "1 it is no number"


def test_shards_of_one_name_in_two_folders_keep_their_own_scores_and_keys(tmp_path):
    for folder, text in (("one", "a b c"), ("two", "a b c d")):
        write_shards([sample("000", text)], tmp_path / "raw" / folder)
    filter_shards(str(tmp_path / "raw"), tmp_path / "clean", keep=["caption_words"])
    scores = tmp_path / "clean" / "scores"
    values = [pq.read_table(scores / n / "000000.parquet")["caption_words"] for n in ("one", "two")]
    assert [value.to_pylist() for value in values] == [[3], [4]]
    assert [s.key for s in open_shards(tmp_path / "clean")] == ["000", "000-2"]


def test_a_filter_from_outside_the_repository_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "my_filters").mkdir()
    (tmp_path / "my_filters" / "caption_characters.py").write_text(
        "from dataclasses import dataclass\n"
        "from data_pipelines.filter import BoundedFilter\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class CaptionCharacters(BoundedFilter):\n"
        "    def score(self, samples):\n"
        "        return [len(sample.text) for sample in samples]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    samples = [sample("a", "long enough"), sample("b", "short")]
    assert run(tmp_path, samples, "my_filters.caption_characters(min=6)")[0] == ["a"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "There is no rule"),
        (["caption_word"], "Did you mean caption_words"),
        (["data_pipelines.faults"], "faults is no filter. Known: caption_words"),
        (["caption_words(top=0)"], r"caption_words\(top=0\): top=0 is no share"),
        (["caption_words(top=1.5)"], "top=1.5 is no share"),
        (["caption_words(min=5, max=2)"], "min=5 is above max=2"),
        (["caption_words(top=True)"], "top cannot be True, a bool"),
        (["caption_words(min='a')"], "min cannot be 'a', a str"),
        (["image_side(min=0)"], "min=0 is below 1 pixel"),
        (["image_side(max_aspect=0.5)"], "max_aspect=0.5 cannot be met"),
        (["exact_duplicate(by='sound')"], "by='sound' is not known"),
        (["exact_duplicate(top=0.5)"], "unexpected keyword argument 'top'"),
        (
            ["caption_words(min=4)", "image_side"],
            r"caption_words\(min=4\) dropped most: 2 of the 2",
        ),
    ],
)
def test_bad_rules_get_one_line(tmp_path, keep, message):
    raw = raw_shards(tmp_path, [sample("a"), sample("b")])
    with pytest.raises(UserError, match=message) as error:
        filter_shards(raw, tmp_path / "clean", keep=keep)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "clean").exists()


def test_a_set_in_which_everything_is_broken_says_so(tmp_path):
    raw = raw_shards(tmp_path, [sample(k, image=b"broken") for k in "abc"])
    with pytest.raises(UserError, match="can be scored: 3 image format is not known"):
        filter_shards(raw, tmp_path / "clean", keep=["image_side(top=0.5)", "exact_duplicate"])


def test_the_input_is_never_the_output(tmp_path):
    raw = raw_shards(tmp_path, [sample("a")])
    with pytest.raises(UserError, match="Give another output folder"):
        filter_shards(f"{raw}/*.tar", tmp_path / "raw", keep=["caption_words"], overwrite=True)
