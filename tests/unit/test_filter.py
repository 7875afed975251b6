"""Curation from shards to shards: copied as they are, resumed, and scored no more than needed."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_support import contents, filtered, many, sample

from data_pipelines import filter as filtering
from data_pipelines.curation import materialise, scores
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.keep_list import read_copies
from data_pipelines.shards import open_shards, write_shards
from vlp.errors import UserError
from vlp.manifest import damage

INLINE = Engine(kind="inline")
KEEP = ("caption_words(min=2)", "image_side(min=21, top=0.7)", "exact_duplicate(by='pair')")


def uids(count):
    return [f"{n:016x}{n + 1:016x}" for n in range(count)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped, in the folder ``whole`` beside its raw shards."""
    folder = tmp_path_factory.mktemp("whole")
    filtered(folder, many(), *KEEP, out="whole", samples_per_shard=4, per_shard=14)
    return folder


@pytest.mark.parametrize("size", [9, 40])
def test_decisions_do_not_depend_on_how_samples_are_cut_into_shards(tmp_path, whole, size):
    kept, report = filtered(tmp_path, many(), *KEEP, per_shard=size)
    assert kept == sorted(one.key for one in open_shards(whole / "whole"))
    first = json.loads((whole / "whole" / "report.json").read_text())
    assert report["rules"] == first["rules"]


def test_what_is_kept_is_copied_byte_for_byte_into_full_shards_without_gaps(tmp_path):
    samples = [
        sample(f"{n:02d}", "short" if n % 3 == 0 else "a long caption", n=n) for n in range(9)
    ]
    keys, report = filtered(tmp_path, samples, "caption_words", samples_per_shard=4)
    assert keys == ["01", "02", "04", "05", "07", "08"]
    clean = tmp_path / "clean"
    assert {one.key: one for one in open_shards(clean)} == {
        one.key: one for one in samples if one.text != "short"
    }
    assert [len(open_shards(path)) for path in sorted(clean.glob("*.tar"))] == [4, 2]
    assert json.loads((clean / "sizes.json").read_text()) == {"000000.tar": 4, "000001.tar": 2}
    assert damage(clean) is None
    (clean / "000001.tar").write_bytes(b"x" * (clean / "000001.tar").stat().st_size)
    assert damage(clean) == "000001.tar is not as it was written"
    assert (report["samples_in"], report["samples_out"], report["shards_out"]) == (9, 6, 2)


def test_the_order_follows_from_the_seed_and_mixes_all_shards(tmp_path):
    orders = []
    for seed, out in ((0, "a"), (0, "b"), (1, "c")):
        filtered(tmp_path, many(), "caption_words(min=1)", out=out, seed=seed, samples_per_shard=20)
        orders.append([one.key for one in open_shards(tmp_path / out)])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    first_half = [int(key) for key in orders[0][:20]]
    assert 5 < sum(key < 20 for key in first_half) < 15


def test_shards_of_one_name_in_two_folders_keep_their_own_scores_and_keys(tmp_path):
    for folder, text in (("one", "a b c"), ("two", "a b c d")):
        write_shards([sample("000", text)], tmp_path / "raw" / folder)
    raw, clean = str(tmp_path / "raw"), tmp_path / "clean"
    filter_shards(raw, clean, keep=["caption_words"], engine=INLINE)
    values = [
        pq.read_table(clean / "scores" / n / "000000.parquet")["caption_words"].to_pylist()
        for n in ("one", "two")
    ]
    assert values == [[3], [4]]
    assert sorted(one.key for one in open_shards(clean)) == ["000", "000-2"]


def test_keys_are_unique_even_where_a_name_that_is_given_is_taken(tmp_path):
    for folder, keys in (("a", ["k", "k-2"]), ("b", ["k"]), ("c", ["k", "k-3"])):
        write_shards([sample(key) for key in keys], tmp_path / "raw" / folder)
    filter_shards(str(tmp_path / "raw"), tmp_path / "clean", keep=["decodable"], engine=INLINE)
    keys = [one.key for one in open_shards(tmp_path / "clean")]
    assert len(set(keys)) == 5
    assert not open_shards(tmp_path / "clean").faults


def test_a_shard_that_is_written_anew_is_not_read_by_its_old_index(tmp_path):
    for text in ("one two three", "four five six, and much longer than it was"):
        write_shards([sample("a", text)], tmp_path / "raw")
        filter_shards(
            str(tmp_path / "raw"), tmp_path / "clean", keep=["caption_words"], engine=INLINE
        )
        assert [one.text for one in open_shards(tmp_path / "clean")] == [text]


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_run_that_stops_at_any_write_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, whole, stop
):
    (tmp_path / "raw14").symlink_to(whole / "raw14")
    writes = iter(range(1, 100))

    def stopping(real):
        def call(*arguments, **options):
            if next(writes) == stop:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(scores, "_write", stopping(scores._write))
        patched.setattr(materialise, "write_shard", stopping(materialise.write_shard))
        with pytest.raises(KeyboardInterrupt):
            filtered(tmp_path, many(), *KEEP, samples_per_shard=4, per_shard=14)
    assert not (tmp_path / "clean").exists()
    part = tmp_path / ".clean.part"
    (part / "scores").mkdir(exist_ok=True)
    (part / "scores" / ".000000.parquet.1.part").write_bytes(b"half")
    (part / "000099.tar").write_bytes(b"of another decision, and moved already")
    for shards in part.glob(".shards-*"):
        (shards / ".000000.tar.1.part").write_bytes(b"half")
    filtered(tmp_path, many(), *KEEP, samples_per_shard=4, per_shard=14)
    assert contents(tmp_path / "clean") == contents(whole / "whole")
    folders = (tmp_path / "clean", whole / "whole")
    reports = [json.loads((folder / "report.json").read_text())["rules"] for folder in folders]
    assert reports[0] == reports[1]  # what was counted before the stop, too
    names = [sorted(p.name for p in folder.rglob("*")) for folder in folders]
    assert names[0] == names[1]


def test_shards_that_a_stopped_run_left_are_not_those_of_an_input_that_has_changed(
    tmp_path, monkeypatch
):
    raw, clean = tmp_path / "raw", tmp_path / "clean"
    real = filtering.materialise

    def stopping(*arguments, **options):
        real(*arguments, **options)
        raise KeyboardInterrupt

    write_shards([sample("a", "one two three")], raw)
    with monkeypatch.context() as patched:
        patched.setattr(filtering, "materialise", stopping)
        with pytest.raises(KeyboardInterrupt):
            filter_shards(str(raw), clean, keep=["caption_words"], engine=INLINE)
    write_shards([sample("a", "four five six, and longer")], raw)
    filter_shards(str(raw), clean, keep=["caption_words"], engine=INLINE)
    assert [one.text for one in open_shards(clean)] == ["four five six, and longer"]


def test_a_keep_list_says_the_same_as_shards_and_holds_uids_where_all_have_one(tmp_path):
    samples = [sample(f"{n}", "word " * (n % 5 + 1), uid=uid) for n, uid in enumerate(uids(10))]
    kept, _ = filtered(tmp_path, samples, "caption_words", per_shard=3)
    raw = str(tmp_path / "raw3")
    filter_shards(raw, tmp_path / "list", keep=["caption_words"], keep_list=True, engine=INLINE)
    assert not list((tmp_path / "list").glob("*.tar"))
    shards = open_shards(raw)
    for name in ("", "keep.npy"):
        copies = np.concatenate(read_copies(str(tmp_path / "list" / name), shards))
        assert [shards.entries[n].key for n in np.flatnonzero(copies)] == kept
    listed = np.load(tmp_path / "list" / "keep.npy")
    assert (listed == np.sort(listed)).all()


def test_a_table_is_chosen_from_by_its_columns_alone(tmp_path):
    (tmp_path / "pool").mkdir()
    table = pa.table(
        {
            "uid": uids(6),
            "text": ["a b c", "a b c", None, "a b", "a b c", "a b c d"],
            "original_width": [300, 300, 300, 300, 100, 700],
            "original_height": [300, 300, 300, 300, 300, 200],
            "clip_l14_similarity_score": [0.1, 0.3, 0.9, 0.2, 0.5, float("nan")],
        }
    )
    pq.write_table(table, tmp_path / "pool" / "00000000.parquet", row_group_size=2)
    keep = ("caption_words", "image_side(min=1)")
    options = {"keep_list": True, "engine": INLINE, "overwrite": True}
    report = filter_shards(str(tmp_path / "pool"), tmp_path / "list", keep=keep, **options)
    listed = np.load(tmp_path / "list" / "keep.npy")
    assert listed["f0"].tolist() == [0, 1, 4]
    assert report["failed"] == {
        "no caption": {"count": 1, "examples": [f"00000000.parquet: {uids(6)[2]}"]}
    }
    rows = pq.read_table(tmp_path / "list" / "keep.parquet").to_pylist()
    assert rows[0] == {"shard": "00000000.tar", "key": uids(6)[0], "copies": 1}
    score = "metadata_number(field='clip_l14_similarity_score', top=0.6)"
    filter_shards(str(tmp_path / "pool"), tmp_path / "list", keep=[score], **options)
    # Of the six one has no caption and one no number: 0.6 of four is two.
    assert np.load(tmp_path / "list" / "keep.npy")["f0"].tolist() == [1, 4]
    with pytest.raises(UserError, match="Add --keep-list"):
        filter_shards(str(tmp_path / "pool"), tmp_path / "clean", keep=keep, engine=INLINE)


def test_rows_whose_picture_img2dataset_did_not_get_are_failed(tmp_path):
    columns = {
        "key": ["000", "001"],
        "caption": ["a b c", "a b c"],
        "status": ["success", "failed_to_download"],
        "width": [300, None],
        "height": [300, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    for keep in ("caption_words", "image_side"):
        report = filter_shards(
            str(tmp_path / "*.parquet"), tmp_path / keep, keep=[keep], keep_list=True, engine=INLINE
        )
        assert report["failed"]["picture was not downloaded"]["count"] == 1
        rows = pq.read_table(tmp_path / keep / "keep.parquet").to_pylist()
        assert rows == [{"shard": "00000.tar", "key": "000", "copies": 1}]


def test_a_table_that_is_damaged_gets_one_line(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match=r"Cannot read the table .*a.parquet") as error:
        filter_shards(
            str(tmp_path / "a.parquet"), tmp_path / "l", keep=["caption_words"], keep_list=True
        )
    assert "\n" not in str(error.value)


def test_a_sample_that_a_list_names_several_times_is_written_as_often(tmp_path):
    write_shards([sample(k) for k in "abc"], tmp_path / "raw")
    rows = {"shard": ["000000.tar"] * 2, "key": ["a", "c"], "copies": [3, 1]}
    pq.write_table(pa.table(rows), tmp_path / "keep.parquet")
    keep = [f"listed(path={str(tmp_path / 'keep.parquet')!r})"]
    report = filter_shards(str(tmp_path / "raw"), tmp_path / "clean", keep=keep, engine=INLINE)
    keys = Counter(one.key for one in open_shards(tmp_path / "clean"))
    assert keys == {"a": 1, "a-2": 1, "a-3": 1, "c": 1}
    assert report["samples_out"] == 4
    pq.write_table(pa.table(rows | {"copies": [30, 1]}), tmp_path / "keep.parquet")
    with pytest.raises(UserError, match="makes 900 copies of a sample"):
        filter_shards(str(tmp_path / "raw"), tmp_path / "twice", keep=[*keep, *keep], engine=INLINE)


def test_a_set_in_which_everything_is_broken_says_so(tmp_path):
    samples = [sample(k, image=b"broken") for k in "abc"]
    with pytest.raises(UserError, match="can be scored: 3 image format is not known"):
        filtered(tmp_path, samples, "image_side(top=0.5)", "exact_duplicate")


def test_the_input_is_never_the_output(tmp_path):
    write_shards([sample("a")], tmp_path / "raw")
    with pytest.raises(UserError, match="Give another output folder"):
        filter_shards(
            f"{tmp_path}/raw/*.tar", tmp_path / "raw", keep=["caption_words"], overwrite=True
        )
