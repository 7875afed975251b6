"""Scores on disk: a status for every sample, and nothing is scored that is still valid."""

import os
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from curation_support import filtered, many, plain, sample

from data_pipelines.curation import sheet
from data_pipelines.shards import open_shards
from vlp.checkpoint import save_encoder
from vlp.encoder import create_encoder, read_config
from vlp.errors import UserError


def test_what_cannot_be_scored_is_failed_not_filtered_and_outside_the_pool(tmp_path):
    samples = [
        sample("broken", image=b"\xff\xd8 no picture"),
        sample("large"),
        sample("small", image=plain(200, 200)),
        sample("empty", image=b""),
    ]
    keys, report = filtered(tmp_path, samples, "image_side(top=0.5)", "caption_words")
    assert keys == ["large"]  # half of the two that have a size
    assert {reason: fault["count"] for reason, fault in report["failed"].items()} == {
        "image format is not known": 1,
        "image is empty": 1,
    }
    told = [(step["alone"], step["failed"], step["dropped"]) for step in report["rules"]]
    assert told == [(1, 2, 1), (0, 0, 0)]


def test_scores_have_a_row_for_every_sample_with_a_status_of_each_filter(tmp_path):
    samples = [sample("a"), sample("b", image=b"broken")]
    filtered(
        tmp_path, samples, "image_side", "caption_words(min=1)", "caption_words(max=9)", per_shard=9
    )
    table = pq.read_table(tmp_path / "clean" / "scores" / "000000.parquet").to_pydict()
    assert table == {
        "key": ["a", "b"],
        "caption_words": [3, 3],
        "caption_words status": ["ok", "ok"],
        "image_side": [300, None],
        "image_side status": ["ok", "failed: image format is not known"],
    }


def test_other_thresholds_and_orders_do_not_score_again(tmp_path, monkeypatch):
    filtered(tmp_path, many(), "caption_words(min=2)", "image_side(min=1)", out="one")
    keep = ("image_side(min=21)", "caption_words(min=1, top=0.5)")
    kept, fresh = filtered(tmp_path, many(), *keep, out="fresh")
    assert fresh["timing"]["scores_reused"] == 0
    monkeypatch.setattr(sheet, "_values", None)  # whoever scores now fails
    again, report = filtered(tmp_path, many(), *keep, out="one", overwrite=True)
    assert report["timing"]["scores_reused"] == 4
    assert (again, report["rules"]) == (kept, fresh["rules"])
    shards = [(tmp_path / out / "000000.tar").read_bytes() for out in ("one", "fresh")]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("keep", ["image_side(min=1, max_aspect=2.0)", "exact_duplicate"])
def test_another_way_to_score_scores_again_and_leaves_other_columns_alone(tmp_path, keep):
    filtered(tmp_path, many(), "image_side(min=1)")
    _, report = filtered(tmp_path, many(), keep, overwrite=True)
    assert report["timing"]["scores_reused"] == 0
    columns = pq.read_schema(tmp_path / "clean" / "scores" / "000000.parquet").names
    assert len(columns) == 5  # key, and of both filters values and status
    _, report = filtered(tmp_path, many(), "image_side(min=2)", overwrite=True)
    assert report["timing"]["scores_reused"] == 4


def test_another_model_or_list_at_the_same_path_scores_again_in_the_same_process(tmp_path, model):
    shutil.copytree(model, tmp_path / "model")
    entries = tmp_path / "entries.txt"
    entries.write_text("red\nsquare\n")
    keep = [
        f"clip_score(model={str(tmp_path / 'model')!r}, min=-1.0)",
        f"metaclip_balance(entries={str(entries)!r}, t=1000)",
    ]

    def columns():
        filtered(tmp_path, [sample("a"), sample("b", "a blue square")], *keep)
        table = pq.read_table(tmp_path / "clean" / "scores" / "000000.parquet")
        names = [name for name in table.column_names if "status" not in name and name != "key"]
        return [table[name].to_pylist() for name in sorted(names)]

    before = columns()
    assert columns() == before
    torch.manual_seed(1)
    save_encoder(create_encoder(read_config("tiny")).eval(), tmp_path / "model")
    entries.write_text("square\nblue\n")
    (clip, matches), (old_clip, old_matches) = columns(), before
    assert (old_matches, matches) == ([[0, 1], [1]], [[0], [0, 1]])
    assert all(abs(new - old) > 1e-4 for new, old in zip(clip, old_clip, strict=True))


def test_only_a_changed_shard_is_scored_again(tmp_path):
    filtered(tmp_path, many(6), "caption_words(min=1)", per_shard=2)
    os.utime(tmp_path / "raw2" / "000001.tar", ns=(1, 1))
    (tmp_path / "clean" / "scores" / "000002.parquet").write_bytes(b"damaged")
    _, report = filtered(tmp_path, many(6), "caption_words(min=1)", per_shard=2)
    assert report["timing"]["scores_reused"] == 1


def test_the_marks_of_the_toy_world_are_hidden_from_filters_and_kept_in_the_shards(tmp_path):
    samples = [sample("k", planted="tiny_image", a=1)]
    with pytest.raises(UserError, match="can be scored: 1 no number in planted"):
        filtered(tmp_path, samples, "metadata_number(field='planted', min=0)")
    filtered(tmp_path, samples, "metadata_number(field='a', min=0)")
    (only,) = open_shards(tmp_path / "clean")
    assert only.metadata == {"planted": "tiny_image", "a": 1}


def test_a_filter_from_outside_the_repository_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "my_filters").mkdir()
    (tmp_path / "my_filters" / "vowels.py").write_text(
        "from dataclasses import dataclass\n"
        "from data_pipelines.curation.rules import BoundedFilter\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Vowels(BoundedFilter):\n"
        "    def score(self, candidates):\n"
        "        return [sum(one.text.count(v) for v in 'aeiou') for one in candidates]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    samples = [sample("a", "aerie"), sample("b", "rhythm")]
    assert filtered(tmp_path, samples, "my_filters.vowels(min=1)")[0] == ["a"]
