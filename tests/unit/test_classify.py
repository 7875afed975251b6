"""Labels of whole sets: the same as of each picture, whatever the workers and the file."""

import csv
import json

import pyarrow.parquet as pq
import pytest
import torch
from tests_support import COLOURS, picture

from vlp import cli
from vlp.checkpoint import load_encoder
from vlp.classifier import build_classifier, probabilities
from vlp.encode import encode_images
from vlp.errors import UserError
from vlp.image import open_image

NAMES = ["red", "blue", "green"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(7):
        colour = list(COLOURS)[n % 4]
        (folder / f"{n}.png").write_bytes(picture(colour, (40, 32), noise=n))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def classify(model, source, *words):
    return cli.run(["classify", str(model), str(source), *map(str, words), "--quiet"])


def test_rows_are_what_each_picture_alone_is_called(photos, model, tmp_path):
    out = tmp_path / "labels.csv"
    told = classify(
        model, photos, "--classes", *NAMES, "--out", out, "--all-classes", "--templates", "{}"
    )
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [str(n) for n in range(7)]
    encoder = load_encoder(model)
    weights = build_classifier(encoder, NAMES, ["{}"])
    for row in rows:
        features = encode_images(encoder, [open_image(str(photos / f"{row['key']}.png"))])
        shares = probabilities(encoder, features, weights)[0]
        assert row["label"] == NAMES[int(shares.argmax())]
        found = torch.tensor([float(row[name]) for name in NAMES])
        torch.testing.assert_close(found, shares, atol=1e-5, rtol=0)
    assert (told["pictures"], told["abstained"], sum(told["classes"].values())) == (7, 0, 7)
    assert "broken" in json.dumps(told["faults"])


def test_shards_give_the_same_table_whatever_the_workers(shards, model, tmp_path):
    tables = []
    for words in (("--engine", "inline"), ("--workers", "2")):
        out = tmp_path / f"{len(tables)}.parquet"
        classify(model, shards, "--classes", *NAMES, "--out", out, *words)
        tables.append(pq.read_table(out))
    assert tables[0].equals(tables[1])
    assert tables[0].num_rows == 64


def test_a_picture_of_which_no_class_is_likely_enough_has_no_label(photos, model, tmp_path):
    out = tmp_path / "labels.parquet"
    told = classify(model, photos, "--classes", *NAMES, "--out", out, "--abstain", "1.0")
    assert told["abstained"] == 7
    assert pq.read_table(out)["label"].null_count == 7


def test_classes_and_templates_come_from_files_too(photos, model, tmp_path):
    (tmp_path / "classes.json").write_text(
        json.dumps({"classnames": NAMES, "templates": ["so {}"]})
    )
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    tables = []
    for words in (("classes.json",), ("classes.txt", "--templates", "so {}")):
        out = tmp_path / f"{len(tables)}.parquet"
        classify(model, photos, "--classes", tmp_path / words[0], *words[1:], "--out", out)
        tables.append(pq.read_table(out))
    assert tables[0].equals(tables[1])
    (found, *_) = classify(model, photos / "1.png", "--classes", tmp_path / "classes.json")
    assert found["class"] == tables[0]["label"][1].as_py()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "labels.txt"), "is no table"),
        ((), "is no image file. Labels of a set go to a file"),
        (("--out", "x.csv", "--abstain", "2"), "no probability"),
        (
            ("--out", "x.csv", "--all-classes", "--classes", "key", "red"),
            "has the name of a column",
        ),
        (("--out", "x.csv", "--classes", "red", "red"), "red"),
        (("--out", "there.csv"), "--overwrite"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, message, photos, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(cli.UserError, match=message):
        classify(model, photos, "--classes", *NAMES, *words)
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not (tmp_path / "x.csv").exists()


def test_a_class_list_is_chosen_from_a_file_of_several(photos, model, tmp_path):
    lists = {"warm": {"classnames": ["red", "yellow"]}, "cold": {"classnames": ["blue", "green"]}}
    (tmp_path / "classes.json").write_text(json.dumps(lists))
    words = ("--classes", tmp_path / "classes.json", "--out", tmp_path / "labels.csv")
    with pytest.raises(UserError, match=r"several class lists\. Choose one with part=: warm, cold"):
        classify(model, photos, *words)
    told = classify(model, photos, *words, "--part", "cold")
    assert set(told["classes"]) <= {"blue", "green"}


def test_a_batch_of_nothing_is_refused(photos, model, tmp_path):
    with pytest.raises(UserError, match=r"batch_size is 0\. Give at least 1"):
        classify(model, photos, "--classes", *NAMES, "--out", tmp_path / "l.csv", "--batch-size", 0)
