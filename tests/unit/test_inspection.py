"""Inspection: the numbers are those of a loop over the samples, and the sheet shows pictures."""

import io
import json

import pytest
from PIL import Image

from data_pipelines.inspection import inspect_shards
from data_pipelines.shards import write_shards
from vlp.errors import UserError
from vlp.types import Sample


def picture(width, height, kind="PNG"):
    data = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(data, kind)
    return data.getvalue()


@pytest.fixture
def source(tmp_path):
    samples = [
        Sample("a", picture(40, 30), "one word more", {"n": 1}),
        Sample("b", picture(80, 20, "JPEG"), "one word more", {"n": 2, "extra": True}),
        Sample("c", picture(60, 90), "short", {}),
        Sample("class", picture(10, 10), "", {"cls": 3}),
        Sample("broken", b"no picture", "a broken picture"),
        Sample("cut", picture(50, 50)[:2000], "a picture that ends early"),
    ]
    write_shards(samples, tmp_path / "shards", samples_per_shard=4)
    return str(tmp_path / "shards")


def test_the_numbers_are_those_of_the_readable_samples(source):
    found = inspect_shards(source)
    assert (found["shards"], found["samples"]) == (2, 5)
    assert found["formats"] == {"png": 4, "jpg": 1}
    assert found["image_width"] == {"min": 10, "median": 50, "max": 80}
    assert found["image_height"] == {"min": 10, "median": 30, "max": 90}
    assert found["caption_words"] == {"min": 0, "median": 3, "max": 5}
    assert found["caption_characters"] == {"min": 0, "median": 13, "max": 25}
    assert (found["empty_captions"], found["duplicate_captions"]) == (0.2, 0.2)
    assert found["metadata"] == {"n": 2, "extra": 1, "cls": 1}
    assert found["faults"] == {
        "image format is not known": {"count": 1, "examples": ["000001.tar: broken"]}
    }


def test_the_result_is_plain_json(source):
    found = inspect_shards(source)
    assert json.loads(json.dumps(found)) == found


def test_a_seed_draws_the_same_samples_again(source):
    first, again, other = (inspect_shards(source, seed=seed)["examples"] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert {one["key"] for one in first} == {"a", "b", "c", "class", "cut"}


def test_the_sheet_leaves_out_and_counts_what_cannot_be_decoded(source, tmp_path):
    found = inspect_shards(source, sheet=tmp_path / "new" / "sheet.png")
    assert found["on_sheet"] == 4
    assert found["faults"]["image ends early"]["examples"] == ["000001.tar: cut"]
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 4 * 128


def test_what_is_printed_names_the_source_the_captions_and_the_faults(source, capsys):
    inspect_shards(source)
    printed = capsys.readouterr().out
    for part in (source, "4 png, 1 jpg", "one word more", "n (in 2)", "1 image format is not"):
        assert part in printed


def test_shards_in_which_no_picture_can_be_read_are_shown_with_their_faults(tmp_path, capsys):
    write_shards([Sample("a", b"junk", "x"), Sample("b", b"", "x")], tmp_path / "s")
    found = inspect_shards(str(tmp_path / "s"), sheet=tmp_path / "sheet.png")
    assert (found["samples"], found["on_sheet"], found["examples"]) == (0, 0, [])
    assert "1 image is empty" in capsys.readouterr().out


def test_a_source_without_shards_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tar files"):
        inspect_shards(str(tmp_path))
