"""vlp mine: features of a folder to the samples of shards, options, and the report."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests_support import Seen, pairs

from data_pipelines.mining.mined import NO_FEATURES, read_mined
from data_pipelines.mining.options import MineOptions
from data_pipelines.mining.samples import open_pool
from data_pipelines.shards import open_shards, write_shards
from vlp import cli
from vlp.errors import UserError

DIM = 8


def features_of(folder, samples, shard_of=lambda place: None, seed=0):
    """Write features, as `vlp embed` does, that can be told by the sample."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((2, len(samples), DIM)).astype(np.float16)
    for name, own in zip(("img_emb", "text_emb"), rows, strict=True):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / f"{name}_0.npy", own)
    columns = {
        "key": [sample.key for sample in samples],
        "caption": [sample.text for sample in samples],
        "metadata": [json.dumps(sample.metadata) for sample in samples],
        "shard": pa.array([shard_of(place) for place in range(len(samples))], pa.string()),
        "offset": [0] * len(samples),
        "size": [0] * len(samples),
    }
    (folder / "metadata").mkdir()
    pq.write_table(pa.table(columns), folder / "metadata" / "metadata_0.parquet")
    return rows


def mine(*words, **options) -> dict:
    argv = ["mine", *map(str, words), "--batch-size", "16", "--quiet"]
    for name, value in options.items():
        argv += [
            f"--{name.replace('_', '-')}",
            *(value if isinstance(value, list) else [str(value)]),
        ]
    return cli.run(argv)


def test_features_are_found_by_key_in_whatever_order_they_are(shards, tmp_path):
    samples = pairs(64)
    order = np.random.default_rng(1).permutation(64)[:62]
    rows = features_of(tmp_path / "features", [samples[n] for n in order])
    rows[0, 5] = 0  # no direction
    np.save(tmp_path / "features" / "img_emb" / "img_emb_0.npy", rows[0])
    pool = open_pool(tmp_path / "features", open_shards(shards), MineOptions())
    assert (pool.row < 0).sum() == 3
    own = np.flatnonzero(pool.row >= 0)
    assert [order[row] for row in pool.row[own]] == own.tolist()
    wanted = rows[0].astype(np.float32)[pool.row[own]]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(pool.unit_rows(["image"], own)[:], wanted, rtol=1e-5)
    told = mine(tmp_path / "features", shards, tmp_path / "hard", clusters=3)
    assert (told["samples"], told["without_features"], told["clusters"]) == (61, 3, 3)
    mined = read_mined(tmp_path / "hard")
    assert (mined.cluster == NO_FEATURES).sum() == 3


def test_keys_that_several_shards_have_are_told_apart_by_the_shard(tmp_path):
    for name in ("a", "b"):
        write_shards(pairs(20), tmp_path / "shards" / name, samples_per_shard=20)
    shards = open_shards(tmp_path / "shards")
    moved = [f"/elsewhere/{name}/000000.tar" for name in "ba" for _ in range(20)]
    features_of(tmp_path / "features", pairs(20) * 2, moved.__getitem__)
    pool = open_pool(tmp_path / "features", shards, MineOptions())
    assert pool.row.tolist() == [*range(20, 40), *range(20)]
    features_of(tmp_path / "lost", pairs(20) * 2)
    with pytest.raises(UserError, match="20 keys twice, and does not say of which shard"):
        open_pool(tmp_path / "lost", shards, MineOptions())


@pytest.mark.parametrize(
    ("group", "groups"), [("caption", 3), ("label", 4), ("image", 62), ("none", 64)]
)
def test_samples_are_grouped_by_caption_class_or_picture(group, groups, tmp_path):
    samples = pairs(64)
    for number in range(64):
        text = ("A Cat", "a  cat", "dogs", "birds")[number % 4]
        image = samples[min(number, 61)].image
        samples[number] = type(samples[0])(samples[number].key, image, text, {"cls": number % 4})
    write_shards(samples, tmp_path / "shards", samples_per_shard=30)
    features_of(tmp_path / "features", samples[:62])
    options = MineOptions(group=group)
    pool = open_pool(tmp_path / "features", open_shards(tmp_path / "shards"), options)
    assert len(np.unique(pool.group)) == groups  # that of samples without features, too


def test_the_report_tells_and_shows_what_was_taken_and_what_was_spared(shards, tmp_path):
    features_of(tmp_path / "features", pairs(64))
    told = mine(tmp_path / "features", shards, tmp_path / "hard", neighbours=3, apart=["image:0.8"])
    report = json.loads((tmp_path / "hard" / "report.json").read_text())
    assert {**report, "out": told["out"]} == told
    assert report["pairs_apart"] > 10
    assert report["epoch"] == {
        "batch_size": 16,
        "share": 0.5,
        "batches": 4,
        "alike": None,
        "meet": 0,
    }
    cosines = report["cosines"]
    assert sum(cosines["hard negatives"]) == 4 * 8 * 7
    assert cosines["hardest of each, hard, mean"] > cosines["hardest of each, random, mean"]
    page = Seen((tmp_path / "hard" / "report.html").read_text())
    assert page.tags.count("img") == 4 * 8 + 2 * (6 + 6 + 12)
    assert all(source.startswith("data:") for source in page.sources)
    for text in ("Taken together", "Kept apart", "The hardest that meet", "a red field, number 0"):
        assert text in "".join(page.text)
    again = mine(tmp_path / "features", shards, tmp_path / "2", neighbours=3, apart=["image:0.8"])
    assert again["hash"] == told["hash"]
    mine(tmp_path / "features", shards, tmp_path / "3", neighbours=3, apart=[])
    assert not len(read_mined(tmp_path / "3").apart)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neighbours": 3, "clusters": 4}, "either --neighbours or --clusters"),
        ({"cap": 0.5}, "--cap is 0.5. Write a factor from 1"),
        ({"apart": ["captions:0.9"]}, "Cannot read the bound 'captions:0.9'"),
        ({"clusters": 65}, "65 clusters of 64 features: ask for 1 to 64"),
        ({"clusters": 0}, "--clusters is 0. Write 1 or more"),
        ({"neighbours": 65}, "--neighbours is 65. Write 1 to 64"),
        ({"seed": -1}, "--seed is -1. Write 0 or more"),
        ({"exact": -1}, "--exact is -1. Write 0 or more"),
        ({"group": "label", "label_key": "kind"}, "No sample has kind in its metadata"),
        ({"keep": "nothing.npy"}, "Cannot read the keep-list nothing.npy"),
    ],
)
def test_an_option_that_makes_no_sense_says_what_to_write(options, said, shards, tmp_path):
    features_of(tmp_path / "features", pairs(64))
    with pytest.raises(UserError, match=said):
        mine(tmp_path / "features", shards, tmp_path / "hard", **options)
    assert not (tmp_path / "hard").exists()


def test_it_is_said_when_one_cluster_holds_all(shards, tmp_path, capsys):
    features_of(tmp_path / "features", pairs(64))
    mine(tmp_path / "features", shards, tmp_path / "one", clusters=1)
    assert "no batch is harder than one drawn at random" in capsys.readouterr().out
    mine(tmp_path / "features", shards, tmp_path / "two", clusters=2)
    assert "at random" not in capsys.readouterr().out


def test_features_of_other_samples_or_of_one_kind_are_refused(shards, tmp_path):
    features_of(tmp_path / "features", pairs(40))
    with pytest.raises(UserError, match=r"24 of 64 samples have no features .* such as 00040"):
        mine(tmp_path / "features", shards, tmp_path / "hard")
    (tmp_path / "features" / "text_emb" / "text_emb_0.npy").unlink()
    with pytest.raises(UserError, match=r"holds no features of texts"):
        mine(tmp_path / "features", shards, tmp_path / "hard")
    of_images = {"by": "image", "apart": ["image:0.9"]}
    features_of(tmp_path / "images", pairs(64))
    (tmp_path / "images" / "text_emb" / "text_emb_0.npy").unlink()
    told = mine(tmp_path / "images", shards, tmp_path / "of_images", **of_images)
    assert told["cosines"]["between"] == "image to image"
    with pytest.raises(UserError, match="lacks img_emb"):
        mine(shards, shards, tmp_path / "hard")
