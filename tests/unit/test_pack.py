"""Packing: what a person has in a folder or a table comes out of the shards, byte for byte."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines.pack import pack
from data_pipelines.shards import open_shards
from vlp.errors import UserError


def picture(colour="red", kind="PNG"):
    data = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(data, kind)
    return data.getvalue()


RED, BLUE = picture("red"), picture("blue", "JPEG")


def folder(tmp_path, files):
    """Write files into a folder: text, bytes, or a dict as JSON."""
    for name, content in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return tmp_path / "in"


def packed(tmp_path, source, **options):
    defaults = {
        "image": "image",
        "caption": "caption",
        "samples_per_shard": 1000,
        "overwrite": False,
    }
    report = pack(source, tmp_path / "out", **(defaults | options))
    faults = {reason: fault["count"] for reason, fault in report["faults"].items()}
    return {sample.key: sample for sample in open_shards(tmp_path / "out")}, faults


def test_a_folder_is_packed_with_captions_and_metadata_beside_the_images(tmp_path):
    source = folder(
        tmp_path,
        {
            "a.png": RED,
            "a.txt": "a red picture\n",
            "deep/er/b.JPG": BLUE,
            "deep/er/b.json": {"caption": "a blue picture", "license": "CC0"},
            "c.png": RED,
            "c.txt": "the text wins ☃",
            "c.json": {"caption": "not this", "width": 8},
        },
    )
    samples, faults = packed(tmp_path, source)
    assert list(samples) == ["a", "c", "deep/er/b"]
    assert (samples["a"].image, samples["a"].text) == (RED, "a red picture")
    assert (samples["deep/er/b"].image, samples["deep/er/b"].text) == (BLUE, "a blue picture")
    assert samples["deep/er/b"].metadata["license"] == "CC0"
    assert (samples["c"].text, samples["c"].metadata["width"]) == ("the text wins ☃", 8)
    assert not faults


def test_a_caption_may_be_in_another_field_of_the_json(tmp_path):
    source = folder(tmp_path, {"a.png": RED, "a.json": {"alt": "from alt", "caption": "no"}})
    samples, _ = packed(tmp_path, source, caption="alt")
    assert samples["a"].text == "from alt"


def test_what_lacks_an_image_or_a_caption_is_counted_and_left_out(tmp_path):
    source = folder(
        tmp_path,
        {
            "good.png": RED,
            "good.txt": "good",
            "bare.png": RED,
            "blank.png": RED,
            "blank.txt": " \n",
            "lonely.txt": "no picture",
            "latin.png": RED,
            "latin.txt": b"caf\xe9",
            "torn.png": RED,
            "torn.json": "{",
            ".hidden/a.png": RED,
            "._good.png": b"litter",
        },
    )
    samples, faults = packed(tmp_path, source)
    assert list(samples) == ["good"]
    assert faults == {
        "no caption": 2,
        "no image": 1,
        "caption is no UTF-8": 1,
        "metadata is no JSON object": 1,
    }


def test_a_broken_image_is_packed_as_it_is(tmp_path):
    source = folder(
        tmp_path, {"a.jpg": b"\xff\xd8 broken", "a.txt": "a", "b.png": b"", "b.txt": "b"}
    )
    samples, faults = packed(tmp_path, source)
    assert [sample.image for sample in samples.values()] == [b"\xff\xd8 broken", b""]
    assert not faults


def test_keys_with_dots_and_equal_stems_stay_apart(tmp_path):
    source = folder(
        tmp_path,
        {"a.v2.png": RED, "a.v2.txt": "dots", "b.jpg": BLUE, "b.png": RED, "b.txt": "both"},
    )
    samples, _ = packed(tmp_path, source)
    assert {key: (s.text, s.image) for key, s in samples.items()} == {
        "a_v2": ("dots", RED),
        "b": ("both", BLUE),
        "b-2": ("both", RED),
    }


@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_csv_is_packed_by_paths_relative_to_it(tmp_path, suffix, comma):
    rows = [
        ("image", "caption", "uid", "score"),
        ("pictures/a.png", f'"two{comma} or\nmore"', "007", "0.5"),
        ("pictures/b.png", "2024", "a.b", ""),
    ]
    table = "\n".join(comma.join(row) for row in rows)
    source = folder(tmp_path, {f"t.{suffix}": table, "pictures/a.png": RED, "pictures/b.png": BLUE})
    samples, faults = packed(tmp_path, source / f"t.{suffix}")
    assert {key: (s.image, s.text) for key, s in samples.items()} == {
        "007": (RED, f"two{comma} or\nmore"),
        "a_b": (BLUE, "2024"),
    }
    assert samples["007"].metadata == {"uid": "007", "score": 0.5}
    assert samples["a_b"].metadata == {"uid": "a.b"}
    assert not faults


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    table = "image,caption\na.png,good\nnone.png,x\nhttp://a/b.png,x\n,x\na.png,\na.png,x,y\n.,x\n"
    source = folder(tmp_path, {"t.csv": table, "a.png": RED})
    samples, faults = packed(tmp_path, source / "t.csv")
    assert list(samples) == ["000000000"]
    assert faults == {
        "image file is missing": 2,
        "image is a URL, not a file": 1,
        "no image": 1,
        "no caption": 1,
        "row has too many or too few columns": 1,
    }


def test_jsonl_may_change_its_types_and_lose_a_line(tmp_path):
    rows = [
        json.dumps({"image": "a.png", "caption": "one", "n": 1, "key": "k"}),
        "not json",
        json.dumps({"image": "a.png", "caption": ["two", "three"], "n": "x"}),
        "",
    ]
    source = folder(tmp_path, {"t.jsonl": "\n".join(rows), "a.png": RED})
    samples, faults = packed(tmp_path, source / "t.jsonl")
    assert samples["k"].metadata == {"n": 1}
    assert samples["000000001"].text == "two\nthree"
    assert faults == {"row is no JSON object": 1}


def test_parquet_holds_images_as_bytes_or_as_hugging_face_does(tmp_path):
    source = folder(tmp_path, {"a.png": RED})
    plain = {"picture": [RED, None], "text": ["red", "gone"], "score": [float("nan"), 1.0]}
    pq.write_table(pa.table(plain), source / "plain.parquet")
    samples, faults = packed(tmp_path, source / "plain.parquet", image="picture", caption="text")
    assert [(s.image, s.text, s.metadata) for s in samples.values()] == [(RED, "red", {})]
    assert faults == {"no image": 1}
    images = [{"bytes": BLUE, "path": "x.jpg"}, {"bytes": None, "path": "a.png"}]
    pq.write_table(pa.table({"image": images, "caption": ["b", "r"]}), source / "hf.parquet")
    samples, _ = packed(tmp_path, source / "hf.parquet", overwrite=True)
    assert [s.image for s in samples.values()] == [BLUE, RED]


def test_shards_hold_no_more_than_they_are_told_and_repeat_byte_for_byte(tmp_path):
    files = {f"{n}.png": RED for n in range(5)} | {f"{n}.txt": "x" for n in range(5)}
    source = folder(tmp_path, files)
    packed(tmp_path, source, samples_per_shard=2)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in shards] == [f"00000{n}.tar" for n in range(3)]
    before = [path.read_bytes() for path in shards]
    packed(tmp_path, source, samples_per_shard=2)
    assert [path.read_bytes() for path in shards] == before


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({"a.png": RED}, "", "Nothing of .* can be packed: 1 no caption"),
        ({"x.tar": b""}, "", "holds no sample with an image and a caption"),
        ({"a.txt": "x"}, "", "holds no images. Give a folder"),
        ({"a.png": RED}, "missing", "There is no folder or table"),
        ({"a.png": RED}, "a.png", "is no table that vlp can read"),
        ({"t.csv": ""}, "t.csv", "Cannot read the table .*: Empty CSV file."),
        ({"t.csv": b"image,caption\n\xe9,\xe9\n"}, "t.csv", "Save it as UTF-8"),
        ({"t.csv": "img,caption\n"}, "t.csv", "no column 'image'. It has: img, caption. Did you"),
        ({"t.csv": "image,alt\n"}, "t.csv", "no column 'caption'. .* Write --caption COLUMN"),
        ({"t.csv": "image,caption\n"}, "t.csv", "Nothing of .* can be packed: it has no rows"),
        ({"t.jsonl": "\n"}, "t.jsonl", "holds no rows."),
        ({"t.jsonl": "?\n"}, "t.jsonl", r"holds no rows \(1 row is no JSON object\)"),
        ({"t.parquet": "junk"}, "t.parquet", "Cannot read the table"),
    ],
)
def test_a_source_that_cannot_be_packed_gets_one_line(tmp_path, files, name, message):
    with pytest.raises(UserError, match=message) as error:
        packed(tmp_path, folder(tmp_path, files) / name)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
