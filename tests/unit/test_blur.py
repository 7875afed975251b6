"""Boxes are blurred, and what has none stays as it is."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.curation.blur import Blur, Box, blurred
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.shards import open_shards, write_shards
from vlp.errors import UserError
from vlp.image import decode
from vlp.sample import Sample

INLINE = Engine(kind="inline")


def noisy(form="PNG", size=(200, 100), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def detail(picture, box):
    """Return how much neighbouring pixels differ inside a box."""
    width, height = picture.size
    rows = np.asarray(picture, np.float32)
    inside = rows[
        int(box.top * height) : int(box.bottom * height),
        int(box.left * width) : int(box.right * width),
    ]
    return float(np.abs(np.diff(inside, axis=1)).mean())


def test_a_box_is_blurred_and_what_is_far_from_it_is_not():
    picture, box, elsewhere = decode(noisy()), Box(0.1, 0.2, 0.3, 0.6), Box(0.6, 0.1, 1.0, 0.9)
    after = blurred(picture, [box])
    assert detail(after, box) < 0.25 * detail(picture, box)
    assert detail(after, elsewhere) == detail(picture, elsewhere)
    assert after.size == picture.size


def test_a_box_may_reach_over_the_border_and_be_empty():
    picture = decode(noisy())
    over = blurred(picture, [Box(-0.02, 0.5, 0.2, 1.03)])
    assert detail(over, Box(0, 0.5, 0.2, 1.0)) < 0.25 * detail(picture, Box(0, 0.5, 0.2, 1.0))
    empty = blurred(picture, [Box(0.5, 0.5, 0.5, 0.5)])
    assert detail(empty, Box(0.6, 0, 1, 1)) == detail(picture, Box(0.6, 0, 1, 1))


@pytest.fixture
def raw(tmp_path):
    boxes = {"1": [[0.1, 0.2, 0.3, 0.6]], "2": [], "4": [[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 1, 1]]}
    forms = {"1": "JPEG", "4": "WEBP"}
    samples = [
        Sample(
            str(n),
            noisy(forms.get(str(n), "PNG"), seed=n),
            "a long caption",
            {"faces": boxes[str(n)], "n": n} if str(n) in boxes else {"n": n},
        )
        for n in range(6)
    ]
    write_shards(samples, tmp_path / "raw", samples_per_shard=3)
    return {one.key: one for one in samples}


def test_only_pictures_with_boxes_are_encoded_again(tmp_path, raw):
    keep = ["caption_words"]
    filter_shards(
        str(tmp_path / "raw"), tmp_path / "clean", keep=keep, blur_boxes="faces", engine=INLINE
    )
    clean = {one.key: one for one in open_shards(tmp_path / "clean")}
    assert {key for key in raw if clean[key].image != raw[key].image} == {"1", "4"}
    for key in raw:
        assert (clean[key].text, clean[key].metadata) == (raw[key].text, raw[key].metadata)
    for key, form in (("1", "JPEG"), ("4", "WEBP")):
        assert Image.open(io.BytesIO(clean[key].image)).format == form
        for box in raw[key].metadata["faces"]:
            one, other = (decode(own[key].image) for own in (clean, raw))
            assert detail(one, Box(*box)) < 0.3 * detail(other, Box(*box))


def test_with_and_without_blur_are_two_results_of_the_same_scores(tmp_path, raw, capsys):
    options = {"keep": ["caption_words"], "engine": INLINE}
    filter_shards(str(tmp_path / "raw"), tmp_path / "clean", **options)
    plain = (tmp_path / "clean" / "000000.tar").read_bytes()
    filter_shards(
        str(tmp_path / "raw"), tmp_path / "clean", blur_boxes="faces", overwrite=True, **options
    )
    assert (tmp_path / "clean" / "000000.tar").read_bytes() != plain
    said = capsys.readouterr()
    assert "The scores of 2 shards were still valid" in said.out
    assert "Pictures with boxes that were blurred: 2." in said.out
    filter_shards(
        str(tmp_path / "raw"), tmp_path / "clean", blur_boxes="face", overwrite=True, **options
    )
    assert "No sample that is kept has boxes in its field 'face'" in capsys.readouterr().err
    assert (tmp_path / "clean" / "000000.tar").read_bytes() == plain


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[10, 20, 60, 80]], r"raw, 7: faces is \[\[10, 20, 60, 80\]\]. Boxes are lists of left"),
        ([[0.5, 0.5, 0.1, 0.9]], "Boxes are lists of left, top"),
        ([0.1, 0.2, 0.3, 0.4], "Boxes are lists of left, top"),
        ("face", "Boxes are lists of left, top"),
        ([[0.1, 0.2, float("nan"), 0.4]], "Boxes are lists of left, top"),
        ([["a", 0, 1, 1]], "Boxes are lists of left, top"),
    ],
)
def test_what_are_no_boxes_stops_the_run(boxes, message):
    members = {"jpg": noisy("JPEG"), "json": json.dumps({"faces": boxes}).encode()}
    with pytest.raises(UserError, match=message):
        Blur("faces")(members, "raw, 7")


def test_a_picture_that_cannot_be_blurred_is_not_copied():
    told = json.dumps({"faces": [[0, 0, 1, 1]]}).encode()
    with pytest.raises(UserError, match=r"so it cannot be blurred\. Add the rule decodable"):
        Blur("faces")({"jpg": b"broken", "json": told}, "raw, 7")
    with pytest.raises(UserError, match=r"a \.gif cannot be blurred"):
        Blur("faces")({"gif": b"GIF89a", "json": told}, "raw, 7")


def test_a_keep_list_cannot_blur(tmp_path, raw):
    with pytest.raises(UserError, match="A keep-list changes no picture"):
        filter_shards(
            str(tmp_path / "raw"),
            tmp_path / "clean",
            keep=["caption_words"],
            keep_list=True,
            blur_boxes="faces",
        )
