"""Features on disk are found by key and caption, whatever their parts, and refused where odd."""

import pickle
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlp.errors import UserError
from vlp.features import open_features
from vlp.output import write_record

SAMPLES = [(f"shard/{number % 7}", f"caption {number}") for number in range(23)]


def stored(folder, samples=SAMPLES, cuts=(5, 11), dtype=np.float16, dim=4):
    """Write features in as many parts as there are cuts, and one more; return them."""
    pairs = np.random.default_rng(0).standard_normal((len(samples), 2, dim)).astype(dtype)
    for name in ("image_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    edges = [0, *cuts, len(samples)]
    for part, (start, end) in enumerate(pairwise(edges)):
        for place, kind in enumerate(("image", "text")):
            np.save(folder / f"{kind}_emb" / f"{kind}_emb_{part}.npy", pairs[start:end, place])
        keys, captions = zip(*samples[start:end], strict=True)
        table = pa.table({"key": keys, "caption": captions})
        pq.write_table(table, folder / "metadata" / f"metadata_{part}.parquet")
    return pairs


def test_a_row_is_that_of_its_key_and_caption(tmp_path):
    pairs = stored(tmp_path)
    features = open_features(tmp_path)
    assert (len(features), features.dim, features.scale) == (23, 4, None)
    for there in (features, pickle.loads(pickle.dumps(features))):
        for number, (key, caption) in enumerate(SAMPLES):
            row = there.row(key, f" {caption}\n")
            assert row == number
            assert np.array_equal(there.pair(row), pairs[number])
    assert features.row("shard/0", "caption 1") is None
    assert features.row("shard/9", "caption 0") is None
    assert features.has(["shard/0", "shard/9", "", "shard/6"]).tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_the_identity_follows_from_samples_model_and_numbers(tmp_path):
    def identity(name, samples=SAMPLES, scale=1.0, model=None):
        stored(tmp_path / name, samples)
        path = tmp_path / name / "text_emb" / "text_emb_1.npy"
        np.save(path, scale * np.load(path))
        if model:
            write_record(tmp_path / name, "embed", {"model_hash": model, "scale": 20.0})
            assert open_features(tmp_path / name).scale == 20.0
        return open_features(tmp_path / name).identity

    assert identity("first") == identity("again")
    others = [identity("order", SAMPLES[::-1]), identity("numbers", scale=2.0)]
    others += [identity("model", model="abc"), identity("fewer", SAMPLES[:-1])]
    assert len({identity("last"), *others}) == 5


def no_texts(folder):
    (folder / "text_emb" / "text_emb_0.npy").unlink()


def other_lengths(folder):
    np.save(folder / "text_emb" / "text_emb_0.npy", np.ones((22, 4)))


def other_widths(folder):
    np.save(folder / "text_emb" / "text_emb_0.npy", np.ones((23, 5)))


def whole_numbers(folder):
    np.save(folder / "image_emb" / "image_emb_0.npy", np.ones((23, 4), int))


def damaged(folder):
    path = folder / "image_emb" / "image_emb_0.npy"
    path.write_bytes(path.read_bytes()[:150])


def damaged_table(folder):
    (folder / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1")


def no_captions(folder):
    table = pa.table({"key": [key for key, _ in SAMPLES]})
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")


def twice(folder):
    keys, captions = zip(*SAMPLES[:-1], SAMPLES[3], strict=True)
    table = pa.table({"key": keys, "caption": captions})
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_texts, "lacks text_emb/text_emb_0.npy"),
        (other_lengths, "23 image features, 22 text features and 23 rows of metadata"),
        (other_widths, "features of 4 and 5 numbers"),
        (whole_numbers, "holds int64 of 2 dimensions, no features"),
        (damaged, "Cannot read the features"),
        (damaged_table, "Cannot read the columns key and caption"),
        (no_captions, "Cannot read the columns key and caption"),
        (twice, "1 rows of a key and a caption that another row has, such as rows 3 and 22"),
    ],
)
def test_features_that_cannot_be_are_refused_in_one_line(harm, message, tmp_path):
    stored(tmp_path, cuts=())
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_features(tmp_path)
    assert "\n" not in str(error.value)
