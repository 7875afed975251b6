"""Keep-lists: which samples are read and how often, without rewriting shards."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests_support import pairs

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice
from data_pipelines.keep_list import read_copies, write_keep_list
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Row
from data_pipelines.reader import Reader
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.tar_index import open_index
from vlp import cli
from vlp.errors import UserError


@pytest.fixture
def kept(shards, tmp_path):
    """Return a keep-list of the samples whose number ends in 0, by the command line."""
    for number, sample in enumerate(everything := pairs(64)):
        if number % 10:
            everything[number] = type(sample)(sample.key, sample.image, "two words")
    write_shards(everything, shards, samples_per_shard=25)
    argv = ["filter", str(shards), str(tmp_path / "kept"), "--keep", "caption_words(min=3)"]
    report = cli.run([*argv, "--keep-list"])
    assert (report["samples_out"], report["shards_out"]) == (7, 0)
    return tmp_path / "kept"


def edited(kept, **columns) -> str:
    """Return another keep-list with some columns of its own; None leaves one out."""
    table = pq.ParquetFile(kept / "keep.parquet").read().to_pydict()
    table |= columns
    path = kept.parent / "edited.parquet"
    pq.write_table(pa.table({name: c for name, c in table.items() if c is not None}), path)
    return str(path)


def epoch(shards, copies, encoder, count) -> Counter:
    plan = Plan([Row(shards.counts, 0, copies=copies)], count)
    assert plan.num_samples == count
    reader = Reader(
        sources=[shards],
        plan=plan,
        tokenizer=encoder.tokenizer,
        image_size=(16, 16),
        augmentation=Augmentation(),
        captions=CaptionChoice.parse("txt"),
    )
    return Counter(next(Loader(reader, workers=0).batches(0)).keys)


def test_what_filter_keeps_is_read_once_in_an_epoch(kept, shards, encoder):
    opened = open_shards(shards)
    copies = read_copies(str(kept), opened)
    assert [len(c) for c in copies] == [25, 25, 14]
    assert sum(int(c.sum()) for c in copies) == 7
    assert epoch(opened, copies, encoder, 7) == {f"{n:05d}": 1 for n in range(0, 64, 10)}
    assert not list(kept.rglob("*.tar"))


@pytest.mark.parametrize("numbers", [[3, 0, 1, 2, 0, 1, 5], [3.0, 0.0, 1.0, 2.0, 0.0, 1.0, 5.0]])
def test_other_programs_may_write_how_often_a_sample_is_read(kept, shards, encoder, numbers):
    opened = open_shards(shards)
    found = epoch(opened, read_copies(edited(kept, copies=numbers), opened), encoder, 12)
    assert found == {f"{10 * i:05d}": int(n) for i, n in enumerate(numbers) if n}


def test_without_copies_every_sample_is_read_once_and_rows_add_up(kept, shards):
    opened = open_shards(shards)
    assert sum(int(c.sum()) for c in read_copies(edited(kept, copies=None), opened)) == 7
    table = pq.ParquetFile(kept / "keep.parquet").read()
    pq.write_table(pa.concat_tables([table, table]), kept / "keep.parquet")
    copies = read_copies(str(kept), opened)
    assert sum(int(c.sum()) for c in copies) == 14


def test_a_list_goes_with_its_shards_wherever_they_are(kept, shards, tmp_path):
    shards.rename(tmp_path / "elsewhere")
    copies = read_copies(str(kept), open_shards(tmp_path / "elsewhere"))
    assert sum(int(c.sum()) for c in copies) == 7


def test_equal_names_of_shards_in_folders_are_told_apart(tmp_path):
    for name in ("a", "b"):
        write_shards(pairs(4), tmp_path / "two" / name)
    opened = open_shards(tmp_path / "two")
    keys = [open_index(shard).keys for shard in opened.shards]
    assert write_keep_list(opened.shards, keys, [np.zeros(4, int), np.ones(4, int)], tmp_path) == 4
    copies = read_copies(str(tmp_path / "keep.parquet"), opened)
    assert [c.tolist() for c in copies] == [[0] * 4, [1] * 4]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": ["gone", *"abcdef"]}, r"keeps 7 of its 7 samples from shards that do not hold"),
        ({"shard": ["9.tar"] * 7}, r"such as 00000 of 9.tar. Name the shards it was made of"),
        ({"copies": [-1] * 7}, r"keeps 00000 of 000000.tar -1 times. Write a whole number"),
        ({"copies": [0.5] * 7}, r"0.5 times. Write a whole number"),
        ({"copies": [float("nan")] * 7}, r"nan times. Write a whole number"),
        ({"copies": [None] * 6 + [1]}, r"None times. Write a whole number"),
        ({"copies": ["2"] * 7}, r"2 times. Write a whole number"),
        ({"key": None}, r"columns shard, key and copies"),
    ],
)
def test_a_list_that_makes_no_sense_says_why(kept, shards, columns, message):
    with pytest.raises(UserError, match=message) as error:
        read_copies(edited(kept, **columns), open_shards(shards))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing", "torn.parquet", "empty.parquet"])
def test_a_list_that_cannot_be_read_says_what_writes_one(shards, tmp_path, name):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(UserError, match="vlp filter --keep-list"):
        read_copies(str(tmp_path / name), open_shards(shards))


def test_a_run_trains_on_what_is_kept(kept, shards, tmp_path):
    argv = ["train", "toy", "--out", str(tmp_path / "run"), "--data.shards", str(shards)]
    argv += ["--data.keep", str(kept), "--data.batch-size", "8", "--steps", "1", "--quiet"]
    with pytest.raises(UserError, match="larger than the data, 7 samples"):
        cli.run(argv)


UIDS = [
    f"{(number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for number in range(64)
]


def subset(path, uids) -> str:
    """Write a list of uids as DataComp's baselines do."""
    pairs = [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids]
    np.save(path, np.array(sorted(pairs), "u8,u8"))
    return str(path)


@pytest.fixture
def with_uids(tmp_path):
    """Return shards whose metadata has uids, in the first shard of which some have none."""
    samples = pairs(64)
    for number, sample in enumerate(samples):
        uid = {} if number in (3, 4) else {"uid": UIDS[number]}
        samples[number] = replace(sample, metadata={**sample.metadata, **uid})
    samples[4] = replace(samples[4], key=UIDS[4])
    write_shards(samples, tmp_path / "with_uids", samples_per_shard=25)
    return tmp_path / "with_uids"


def test_a_list_of_uids_is_read_as_often_as_each_stands_in_it(with_uids, tmp_path, encoder, capsys):
    opened = open_shards(with_uids)
    gone = ["f" * 32, "0" * 32]
    wanted = [*UIDS[10:15], UIDS[4], UIDS[60], UIDS[60], UIDS[60], *gone]
    copies = read_copies(subset(tmp_path / "subset.npy", wanted), opened)
    assert "7 of the 9 uids" in capsys.readouterr().out
    found = epoch(opened, copies, encoder, 9)
    assert found == {**{f"{n:05d}": 1 for n in range(10, 15)}, UIDS[4]: 1, "00060": 3}


def test_uids_are_read_from_the_metadata_once(with_uids, tmp_path):
    path, opened = subset(tmp_path / "subset.npy", UIDS[:30]), open_shards(with_uids)
    first = read_copies(path, opened)
    names = sorted(p.name for p in (with_uids / ".index").glob("*.uids.parquet"))
    assert names == [f"{n:06d}.tar.uids.parquet" for n in range(3)]
    for shard in opened.shards:  # of the same size and age, but nothing of the old content
        state = shard.stat()
        shard.write_bytes(bytes(state.st_size))
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert [own.tolist() for own in read_copies(path, opened)] == [own.tolist() for own in first]


def test_uids_of_a_changed_shard_and_a_damaged_table_are_read_anew(with_uids, tmp_path):
    path = subset(tmp_path / "subset.npy", UIDS[:2])
    assert read_copies(path, open_shards(with_uids))[0].tolist() == [1, 1] + [0] * 23
    samples = [replace(sample, metadata={"uid": UIDS[1]}) for sample in pairs(25)]
    write_shards(samples, with_uids)
    # Of samples of one uid the first is the one that is meant.
    assert read_copies(path, open_shards(with_uids))[0].tolist() == [1] + [0] * 24
    (with_uids / ".index" / "000000.tar.uids.parquet").write_bytes(b"PAR1 torn")
    assert read_copies(path, open_shards(with_uids))[0].tolist() == [1] + [0] * 24


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, np.int64), 'of int64. A list of uids is .* "u8,u8"'),
        (np.zeros((2, 2), "u8,u8"), "it holds 2 dimensions"),
        (np.zeros(0, "u8,u8"), "keeps no sample at all"),
        (np.array([(1, 2)], "u8,u8"), "keeps no sample at all"),
        (np.array([(1, 2)] * 101, "u8,u8"), "keeps a uid 101 times"),
        (None, "Cannot read the keep-list"),
    ],
)
def test_a_list_of_uids_that_makes_no_sense_says_why(array, message, with_uids, tmp_path):
    path = tmp_path / "subset.npy"
    np.save(path, array) if array is not None else path.write_bytes(b"torn")
    with pytest.raises(UserError, match=message) as error:
        read_copies(str(path), open_shards(with_uids))
    assert "\n" not in str(error.value)
