"""Every kind of dataset: its path says what it is, and all that it holds is read."""

import io
import json
import os
import struct
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests_support import COLOURS, picture

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import encode_dataset
from data_pipelines.faults import SampleFault
from eval.benchmark import read_preset
from eval.features import Encode
from eval.open_dataset import open_dataset
from eval.prompts import class_of_samples, classes_of, classes_of_samples
from vlp.errors import UserError
from vlp.image import decode

NAMES = list(COLOURS)
PICTURES = {f"{name}{i}": picture(name, noise=i) for i in range(2) for name in NAMES[:3]}
"""Two pictures of three colours each."""
PLACES = [NAMES.index(key[:-1]) for key in PICTURES]
LINES = {key: [f"a {key[:-1]} field", f"number {key[-1]}"] for key in PICTURES}


def write_pictures(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for key, data in PICTURES.items():
        (folder / f"{key}.png").write_bytes(data)
    return [f"{key}.png" for key in PICTURES]


def image_folder(folder: Path) -> str:
    for key, data in PICTURES.items():
        path = folder / "val" / f"n{NAMES.index(key[:-1])}" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    return str(folder / "val")


def csv_of_labels(folder: Path) -> str:
    files = write_pictures(folder / "pictures")
    rows = [f"pictures/{f},{place}" for f, place in zip(files, PLACES, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    return str(folder / "labels.csv")


def csv_of_captions(folder: Path) -> str:
    files = write_pictures(folder)
    rows = [f"{f},{line}" for f, key in zip(files, LINES, strict=True) for line in LINES[key]]
    (folder / "captions.csv").write_text("\n".join(["filepath,caption", *rows]))
    return str(folder / "captions.csv")


def jsonl_of_captions(folder: Path) -> str:
    files = write_pictures(folder)
    rows = [
        json.dumps({"image": f, "caption": LINES[key]}) for f, key in zip(files, LINES, strict=True)
    ]
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return str(folder / "captions.jsonl")


def parquet_with_pictures(folder: Path) -> str:
    cells = [{"bytes": data, "path": None} for data in PICTURES.values()]
    pq.write_table(
        pa.table({"image": cells, "caption": list(LINES.values())}), folder / "a.parquet"
    )
    return str(folder / "a.parquet")


def karpathy(folder: Path) -> str:
    write_pictures(folder / "val2014")
    images = [
        {
            "filename": f"{key}.png",
            "filepath": "val2014",
            "split": "test",
            "sentences": [{"raw": line} for line in LINES[key]],
        }
        for key in PICTURES
    ]
    other = {**images[0], "split": "train", "filename": "elsewhere.png"}
    (folder / "dataset_coco.json").write_text(json.dumps({"images": [other, *images]}))
    return str(folder / "dataset_coco.json")


def coco(folder: Path) -> str:
    write_pictures(folder / "images")
    told = {
        "images": [{"id": i, "file_name": f"{key}.png"} for i, key in enumerate(PICTURES)],
        "annotations": [
            {"image_id": i, "caption": f"{line}\n"}
            for i, key in enumerate(LINES)
            for line in LINES[key]
        ],
    }
    (folder / "captions_val2017.json").write_text(json.dumps(told))
    return str(folder / "captions_val2017.json")


def clip_benchmark(folder: Path, **members: list[bytes]) -> str:
    (folder / "test").mkdir()
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for row, data in enumerate(PICTURES.values()):
            for extension, content in {
                "png": data,
                **{k: v[row] for k, v in members.items()},
            }.items():
                info = tarfile.TarInfo(f"{row}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(folder / "test")


def clip_benchmark_of_labels(folder: Path) -> str:
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    return clip_benchmark(folder, cls=[str(place).encode() for place in PLACES])


def clip_benchmark_of_captions(folder: Path) -> str:
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return clip_benchmark(folder, txt=["\n".join(lines).encode() for lines in LINES.values()])


def mnist(folder: Path) -> str:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(6 * 28 * 28, dtype=np.uint8).tobytes()
    for part in ("t10k", "train"):
        images, labels = raw / f"{part}-images-idx3-ubyte", raw / f"{part}-labels-idx1-ubyte"
        images.write_bytes(struct.pack(">IIII", 2051, 6, 28, 28) + pixels)
        labels.write_bytes(struct.pack(">II", 2049, 6) + bytes(PLACES))
    return f"torchvision:MNIST:{folder}"


def hugging_face(folder: Path) -> str:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES[:3])}
    )
    cells = [{"bytes": data, "path": None} for data in PICTURES.values()]
    made = datasets.Dataset.from_dict({"image": cells, "label": PLACES}, features=features)
    made.save_to_disk(folder / "saved")
    return f"hf:{folder / 'saved'}"


LABELLED = [image_folder, csv_of_labels, clip_benchmark_of_labels, mnist, hugging_face]
CAPTIONED = [
    *(csv_of_captions, jsonl_of_captions, parquet_with_pictures),
    *(karpathy, coco, clip_benchmark_of_captions),
]


def by_picture(dataset: Dataset) -> dict[str, int]:
    """Return the row of each of our pictures, found by its pixels."""
    pixels = {decode(data).tobytes(): key for key, data in PICTURES.items()}
    return {pixels[decode(dataset.read(row).image).tobytes()]: row for row in range(len(dataset))}


@pytest.mark.parametrize("make", [*LABELLED, *CAPTIONED])
def test_a_dataset_is_read_by_its_rows_and_known_by_what_it_holds(make, tmp_path, encoder):
    dataset = open_dataset(make(tmp_path))
    assert len(dataset) == len(set(dataset.keys)) == len(PICTURES)
    if make is not mnist:
        assert set(by_picture(dataset)) == set(PICTURES)
    again = open_dataset(dataset.name)
    assert again.identity == dataset.identity
    encoded = encode_dataset(encoder, dataset)
    assert not encoded.faults.as_dict()
    assert [sample.key for sample in encoded.samples] == list(dataset.keys)


@pytest.mark.parametrize("make", LABELLED)
def test_labels_are_classes_of_the_dataset(make, tmp_path):
    dataset = open_dataset(make(tmp_path))
    samples = [dataset.read(row) for row in range(len(dataset))]
    found = class_of_samples(classes_of(dataset), samples)
    if make is mnist:
        assert found == PLACES
        return
    rows = by_picture(dataset)
    assert [found[rows[key]] for key in PICTURES] == PLACES
    assert [n.split(" ")[-1] for n in classes_of(dataset).names] == NAMES[:3]


@pytest.mark.parametrize("make", CAPTIONED)
def test_every_line_is_a_caption(make, tmp_path):
    dataset = open_dataset(make(tmp_path))
    assert dataset.has_lines
    rows = by_picture(dataset)
    assert {key: dataset.read(row).text.splitlines() for key, row in rows.items()} == LINES


def test_captions_by_language_are_no_caption_but_kept(tmp_path):
    languages = {"en": "a red field", "de": "ein rotes Feld"}
    rows = [{"image": file, "captions": languages} for file in write_pictures(tmp_path)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sample = open_dataset(str(tmp_path / "a.jsonl")).read(0)
    assert sample.text == ""
    assert sample.metadata["captions"] == languages


def test_of_hugging_face_any_row_may_have_several_captions_or_no_picture(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    )
    cells = [{"bytes": next(iter(PICTURES.values())), "path": None}, None]
    captions = [["one"], ["one", "two"]]
    made = datasets.Dataset.from_dict({"image": cells, "captions": captions}, features=features)
    made.save_to_disk(tmp_path / "saved")
    dataset = open_dataset(f"hf:{tmp_path / 'saved'}")
    assert dataset.has_lines
    assert dataset.read(0).text == "one"
    with pytest.raises(SampleFault, match="row has no picture"):
        dataset.read(1)


def test_several_labels_of_clip_benchmark_are_a_list(tmp_path):
    hot = []
    for place in PLACES:
        buffer = io.BytesIO()
        np.save(buffer, np.eye(3)[place] + np.eye(3)[0])
        hot.append(buffer.getvalue())
    (tmp_path / "classnames.txt").write_text("red\ngreen\nblue\n")
    dataset = open_dataset(clip_benchmark(tmp_path, npy=hot))
    samples = [dataset.read(row) for row in range(len(dataset))]
    found = classes_of_samples(classes_of(dataset), samples)
    assert found == [sorted({0, place}) for place in PLACES]


def test_another_label_or_picture_is_another_dataset(tmp_path):
    source = csv_of_labels(tmp_path)
    before = open_dataset(source).identity
    Path(source).write_text(Path(source).read_text()[:-1] + "0")
    changed = open_dataset(source).identity
    (tmp_path / "pictures" / "red0.png").write_bytes(picture("black", noise=7))
    assert len({before, changed, open_dataset(source).identity}) == 3


def test_splits_are_chosen_behind_a_colon(tmp_path):
    source = karpathy(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "val2014" / "elsewhere.png")
    assert open_dataset(f"{source}:train").keys == ["elsewhere"]
    with pytest.raises(UserError, match=r"no split 'tset'. Did you mean test"):
        open_dataset(f"{source}:tset")


def test_names_and_captions_that_are_no_unicode_are_kept_with_their_features(tmp_path, encoder):
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1, as old archives hold
    row = {"image": "red.png", "caption": "half of a pair \ud800"}
    (tmp_path / "images" / "class").mkdir(parents=True)
    for path in (tmp_path / "red.png", tmp_path / "images" / "class" / name):
        path.write_bytes(picture("red"))
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    for source in (tmp_path / "images", tmp_path / "pairs.jsonl"):
        dataset, folder = open_dataset(str(source)), tmp_path / f"features of {source.name}"
        first, again = (Encode(encoder, folder=folder).dataset(dataset) for _ in range(2))
        assert again.samples == first.samples
        assert len(again.samples) == 1
        assert again.image.equal(first.image)


def test_what_cannot_be_a_dataset_is_told_in_a_line(tmp_path):
    source = karpathy(tmp_path / "a" if (tmp_path / "a").mkdir() is None else tmp_path)
    (tmp_path / "a" / "val2014" / "red0.png").unlink()
    folder = Path(image_folder(tmp_path / "b"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "wrong.json").write_text('{"images": [{}]}')
    (tmp_path / "c" / "wrong.csv").write_text("picture,label\na.png,1\n")
    cases = {
        source: r"names 6 pictures, and 1 are missing, such as .*red0\.png",
        str(folder.parent): r"class folder .*val holds no picture. Did you mean .*val",
        str(tmp_path / "c"): "holds no shards and no folders of classes",
        f"{tmp_path}/c/wrong.json": "is no caption file",
        f"{tmp_path}/c/wrong.csv": "no column of pictures: it has picture, label. Call one 'image'",
        f"{tmp_path}/c/none.csv": "There is no table",
        "torchvision:CIFAR10:/nowhere": "There is no folder /nowhere",
        f"torchvision:CIFAR10:{tmp_path}": "Cannot open CIFAR10.*Nothing is downloaded",
        f"torchvision:CIFAR11:{tmp_path}": "Did you mean CIFAR10",
        f"torchvision:VisionDataset:{tmp_path}": "torchvision has no dataset 'VisionDataset'",
        f"hf:{tmp_path}": "Nothing is downloaded",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            open_dataset(name)


def test_what_torchvision_labels_by_more_than_a_class_is_told_in_a_line(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "JPEGImages" / "a.jpg").write_bytes(picture("red"))
    (root / "Annotations" / "a.xml").write_text("<annotation><object></object></annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match="VOCDetection are no pictures with a class or captions"):
        open_dataset(f"torchvision:VOCDetection:{tmp_path}")


def test_an_arrow_file_of_datacomps_cache_is_a_dataset_with_lines(tmp_path):
    rows = [
        {"image": {"bytes": picture(colour), "path": None}, "caption": [f"a {colour}", "a thing"]}
        for colour in ("red", "green")
    ]
    kept = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    place = tmp_path / "hf_cache" / "nlphuji___flickr_1k_test_image_text_retrieval" / "x"
    kept.save_to_disk(str(place))
    (file,) = place.glob("*.arrow")
    file = file.rename(place / "flickr_1k_test_image_text_retrieval-test.arrow")
    dataset = open_dataset(str(file))
    assert dataset.has_lines
    assert dataset.read(1).text == "a green\na thing"
    assert decode(dataset.read(1).image).size == decode(picture("green")).size
    member = next(m for m in read_preset("datacomp38") if m.key == "retrieval/flickr30k")
    assert member.find(tmp_path) == file


def test_an_empty_class_and_names_of_other_classes_are_told(tmp_path):
    folder = Path(image_folder(tmp_path))
    (tmp_path / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(UserError, match=r"has 2 names and .* has 3 class folders"):
        open_dataset(str(folder))
    (folder / "n9").mkdir()
    with pytest.raises(UserError, match=r"n9 holds no picture. Remove it, or add its pictures"):
        open_dataset(str(folder))
