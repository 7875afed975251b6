"""A curation's report: its figures are those of a naive count, and follow from data and seed."""

import base64
import io
import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from tests_support import Seen, picture

from data_pipelines.curation import cascade
from data_pipelines.curation.data_card import public_rule
from data_pipelines.curation.histogram import Spread
from data_pipelines.curation.survey import Few, lots_of
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.shards import open_shards, write_shards
from vlp.types import Sample

EVIL = "</td><script>alert('x')</script>\"&{0}"
INLINE = Engine(kind="inline")
KEEP = (
    "caption_words(min=3)",
    "image_side(min=24, top=0.8)",
    "exact_duplicate(by='caption')",
    "any_of(parts=('caption_words(max=5)', 'image_side(min=40)'))",
)


def some_samples(count=60):
    rng = np.random.default_rng(0)
    for n in range(count):
        words = " ".join(["word", str(n % 25), EVIL, *"abcdefg"][: rng.integers(1, 9)])
        side = int(rng.integers(16, 48))
        image = picture(size=(side, side), noise=n)
        yield Sample(f"{n:04d}", image[:40] if n % 10 == 0 else image, words, {})


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A set, what is left of it, and the report."""
    folder = tmp_path_factory.mktemp("curated")
    write_shards(some_samples(), folder / "raw", samples_per_shard=13)
    report = filter_shards(str(folder / "raw"), folder / "clean", keep=KEEP, engine=INLINE)
    return folder, report


def read(folder, kind):
    """Return the rows of all shards, by key."""
    paths = sorted((folder / "clean" / kind).glob("*.parquet"))
    return {row["key"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def test_decisions_say_what_became_of_every_sample_and_why(curated):
    folder, report = curated
    decisions = read(folder, "decisions")
    assert len(decisions) == report["samples_in"]
    kept = {sample.key for sample in open_shards(folder / "clean")}
    assert {key for key, row in decisions.items() if row["copies"]} == kept
    assert {key for key, row in decisions.items() if row["first"] is None} == kept
    for place, step in enumerate(report["rules"]):
        first = [row for row in decisions.values() if row["first"] == KEEP[place]]
        assert len(first) == step["dropped"] + step["failed"]
        assert sum(KEEP[place] in row["failing"] for row in decisions.values()) == step["alone"]


def test_the_overlap_is_a_naive_count(curated):
    folder, report = curated
    failing = [set(row["failing"]) for row in read(folder, "decisions").values()]
    assert report["overlap"] == [
        [sum({one, other} <= rules for rules in failing) for other in KEEP] for one in KEEP
    ]
    assert report["overlap"][0][3] > 0


def test_histograms_count_every_score_and_know_the_thresholds(curated):
    folder, report = curated
    scores, decisions = read(folder, "scores"), read(folder, "decisions")
    for name, found in report["histograms"].items():
        for is_kept, counts in ((True, found["kept"]), (False, found["dropped"])):
            values = [
                row[name]
                for key, row in scores.items()
                if row[name] is not None and bool(decisions[key]["copies"]) == is_kept
            ]
            naive = Counter(int(np.searchsorted(found["edges"], v, side="right")) for v in values)
            assert counts == [naive[place + 1] for place in range(len(counts))]
    sides = sorted(row["image_side"] for row in scores.values() if row["image_side"] is not None)
    assert report["histograms"]["caption_words"]["thresholds"] == {"min": [3], "max": [5]}
    top = max(24, sides[len(sides) - int(0.8 * len(sides))])
    assert report["histograms"]["image_side"]["thresholds"] == {"min": [top, 40], "max": []}
    document = (folder / "clean" / "report.html").read_text()
    assert "lines at 2.5 and 5.5" in document  # between what stays and what does not


def test_examples_are_what_they_are_said_to_be(curated):
    folder, report = curated
    scores, decisions = read(folder, "scores"), read(folder, "decisions")
    low = report["histograms"]["image_side"]["thresholds"]["min"][0]
    for place, (rule, examples) in enumerate(zip(KEEP, report["examples"], strict=True)):
        later = (None, *KEEP[place + 1 :])
        assert all(decisions[e["key"]]["first"] == rule for e in examples["dropped"])
        assert all(decisions[e["key"]]["first"] in later for e in examples["kept"])
        assert examples["kept"]
        assert report["rules"][place]["dropped"] == 0 or examples["dropped"]
    near = report["examples"][1]
    sides = [
        row["image_side"]
        for key, row in scores.items()
        if decisions[key]["first"] == KEEP[1] and row["image_side"] is not None
    ]
    assert [e["value"] for e in near["just_dropped"]] == sorted(sides, reverse=True)[:3]
    assert min(e["value"] for e in near["just_kept"]) == low


def test_what_share_is_kept_adds_up(curated):
    _, report = curated
    (lengths,) = report["retention"].values()
    assert sum(group["samples"] for group in lengths["groups"]) == report["samples_in"]
    assert sum(group["kept"] for group in lengths["groups"]) == report["samples_out"]
    assert {g["group"]: g["kept"] for g in lengths["groups"]}["1"] == 0


def test_all_but_the_timing_is_the_same_on_any_engine_and_when_scores_are_there(curated):
    folder, report = curated
    clean = folder / "clean"

    def state():
        timed = ("report.json", "report.html")
        files = [p for p in clean.rglob("*") if p.is_file() and p.parent.name != ".index"]
        return {p.relative_to(clean): p.read_bytes() for p in files if p.name not in timed}

    before = state()
    again = filter_shards(str(folder / "raw"), clean, keep=KEEP, engine=Engine(workers=2))
    assert again["timing"]["scores_reused"] == 5
    assert again | {"timing": None} == report | {"timing": None}
    assert json.loads((clean / "report.json").read_text()) == again
    assert state() == before


def test_the_page_shows_it_all_escaped_and_broken_pictures_by_their_reason(curated):
    folder, report = curated
    document = (folder / "clean" / "report.html").read_text()
    seen = Seen(document)
    assert "script" not in seen.tags
    assert any(EVIL in text for text in seen.text)
    assert not re.search(r"https?://|<script|<link|@import|url\(", document)
    assert "default-src 'none'" in document
    text = " ".join(seen.text)
    for shown in (*KEEP, "Near the threshold", "Left after each rule", "image format is not known"):
        assert shown in text, shown
    assert 'class="missing"' in document
    pictures = [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))) for s in seen.sources]
    assert len(pictures) > 10
    assert all(max(p.size) <= 160 for p in pictures)
    assert f"{report['samples_out'] / report['samples_in']:.1%}" in text


def test_the_card_is_hugging_faces_and_names_no_folder(curated):
    folder, report = curated
    card = DatasetCard.load(folder / "clean" / "README.md")
    assert card.data.size_categories == "n<1K"
    assert f"{report['samples_out']} of the 60 image-text pairs of raw" in card.text
    assert str(folder) not in card.content
    assert report["hashes"]["manifest.json"] in card.text
    assert f"| {report['rules'][0]['dropped']} |" in card.text


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("clip_score(model='/home/me/run/', top=0.3)", "clip_score(model='run', top=0.3)"),
        ("clip_score(model='s3://me:pw@b/run')", "clip_score(model='s3://b/run')"),
        ("caption_words(min=3)", "caption_words(min=3)"),
        ("any_of(parts=('language(is=\"ja\")',))", "any_of(parts=('language(is=\"ja\")',))"),
    ],
)
def test_rules_are_published_without_folders_and_logins(rule, told):
    assert public_rule(rule) == told


def test_figures_of_a_dear_rule_are_estimates_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cascade, "SAMPLED", 0.5)
    write_shards(some_samples(400), tmp_path / "raw", samples_per_shard=150)
    keep = ("caption_words(min=3)", "parts.dear(min=12)")
    report = filter_shards(str(tmp_path / "raw"), tmp_path / "clean", keep=keep, engine=INLINE)
    short = [len(s.text) < 12 for s in some_samples(400)]
    both = [len(s.text) < 12 and len(s.text.split()) < 3 for s in some_samples(400)]
    step = report["rules"][1]
    assert step["is_estimate"]
    assert step["alone"] != step["dropped"]
    assert report["overlap"][1][1] == step["alone"] == pytest.approx(sum(short), rel=0.15)
    assert report["overlap"][0][1] == report["overlap"][1][0] == pytest.approx(sum(both), rel=0.15)
    assert report["overlap"][0][0] == report["rules"][0]["alone"]
    text = " ".join(Seen((tmp_path / "clean" / "report.html").read_text()).text)
    assert "estimate" in text
    assert "drawn by the seed" in text
    assert "about" in (tmp_path / "clean" / "README.md").read_text()


def test_what_share_of_each_language_is_kept_but_not_of_each_name(tmp_path):
    texts = ["the red house is near the river and the old mill", "das rote Haus steht am Fluss"]
    samples = (Sample(f"{n}", picture(), texts[n % 3 == 0], {"uid": f"u{n}"}) for n in range(30))
    write_shards(samples, tmp_path / "raw", samples_per_shard=13)
    (tmp_path / "list").mkdir()
    shards = [f"{n:06d}.tar" for n in (0, 1, 2)]
    listed = {"shard": [shards[n // 13] for n in range(30)], "key": [str(n) for n in range(30)]}
    pq.write_table(pa.table(listed), tmp_path / "list" / "keep.parquet")
    keep = ("language", f"listed(path={str(tmp_path / 'list')!r})")
    report = filter_shards(str(tmp_path / "raw"), tmp_path / "clean", keep=keep, engine=INLINE)
    assert set(report["retention"]) == {"words of the caption", "language"}
    assert report["retention"]["language"]["groups"] == [
        {"group": "en", "samples": 20, "kept": 20},
        {"group": "de", "samples": 10, "kept": 0},
    ]


def test_tables_without_pictures_have_a_report_too(tmp_path):
    rows = {
        "uid": [f"{n:032x}" for n in range(30)],
        "text": ["a b c " * (n % 3) for n in range(30)],
    }
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "raw" / "0.parquet")
    keep = ("caption_words(min=3)",)
    report = filter_shards(
        str(tmp_path / "raw"), tmp_path / "clean", keep=keep, keep_list=True, engine=INLINE
    )
    assert (report["samples_in"], report["samples_out"], report["shards_out"]) == (30, 20, 0)
    assert report["failed"]["caption is empty"]["count"] == 10
    assert "keep.parquet" in report["hashes"]
    assert "a table holds no picture" in (tmp_path / "clean" / "report.html").read_text()


def test_few_are_the_nearest_of_all_that_are_offered_however_they_are_cut():
    rng = np.random.default_rng(0)
    rows, far = rng.random(500) < 0.7, rng.integers(0, 9, 500).astype(float)
    lots = lots_of(np.arange(500), 3)
    expected = sorted((far[n], lots[n], n) for n in np.flatnonzero(rows))[:7]
    for size in (500, 60, 1):
        few = Few(7)
        for start in range(0, 500, size):
            own = slice(start, start + size)
            few.offer(rows[own], lots[own], start, None, far[own])
        assert [pick[:3] for pick in few.picks] == expected


def test_lots_are_even_and_follow_from_the_seed():
    lots = lots_of(np.arange(100_000), 0)
    assert np.histogram(lots, 10, (0, 1))[0] == pytest.approx([10_000] * 10, rel=0.05)
    assert len(np.unique(lots)) == 100_000
    other = lots_of(np.arange(100_000), 1)
    assert abs(np.corrcoef(lots, other)[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([5.0] * 10, False),
        ([0.1, 0.2, np.nan, np.inf], False),
        (np.random.default_rng(0).lognormal(8, 3, 1000), True),
        (np.random.default_rng(0).normal(0.3, 0.1, 1000), False),
        ([], False),
        ([np.nan], False),
    ],
    ids=["constant", "few", "wide", "narrow", "none", "nan"],
)
def test_a_histogram_of_any_numbers_loses_none(values, is_log):
    values = np.array(values, float)
    spread = Spread()
    for part in np.array_split(values, 3):
        spread.add(part, lots_of(np.arange(len(part)), 0))
    histogram = spread.histogram([(0.25, np.inf)])
    histogram.add(values, values > 0.25)
    assert histogram.is_log == is_log
    counted = histogram.kept.sum() + histogram.dropped.sum() + histogram.outside
    assert counted == np.count_nonzero(~np.isnan(values))
    assert histogram.outside <= 0.02 * len(values) + 1
    assert np.all(np.diff(histogram.edges) > 0)
