"""What filters of captions, metadata and single pictures say of samples that are known."""

import io
import itertools

import numpy as np
import pytest
from curation_support import candidates, kept, many, plain, sample, scored
from PIL import Image
from tests_support import pairs

from data_pipelines.curation.candidates import Candidate, hash64
from data_pipelines.faults import SampleFault
from data_pipelines.filters.caption_characters import CaptionCharacters
from data_pipelines.filters.caption_words import CaptionWords
from data_pipelines.filters.clip_score import ClipScore
from data_pipelines.filters.exact_duplicate import ExactDuplicate
from data_pipelines.filters.image_bytes import ImageBytes
from data_pipelines.filters.image_side import ImageSide
from data_pipelines.filters.language import Language
from data_pipelines.filters.metadata_number import MetadataNumber
from data_pipelines.filters.one_colour import OneColour
from data_pipelines.filters.opted_out import OptedOut
from vlp.errors import UserError
from vlp.image import ImageError


def test_caption_words_counts_words_between_white_space():
    captions = ["one", "a  red\tsquare\n", "well-known facts, all"]
    scores = scored(CaptionWords(), *(sample("k", text) for text in captions))
    assert scores == [1, 3, 3]
    assert kept(CaptionWords(), scores) == [[False, True, True]]


def test_caption_characters_counts_code_points_and_keeps_more_than_five():
    scores = scored(CaptionCharacters(), *(sample("k", text) for text in ("kitty", "赤い靴です。")))
    assert scores == [5, 6]
    assert kept(CaptionCharacters(), scores) == [[False, True]]


def test_image_side_is_the_shorter_side_and_0_beyond_the_aspect():
    sizes = [(200, 600), (600, 200), (199, 199), (200, 601)]
    scores = scored(ImageSide(), *(sample("k", image=plain(*size)) for size in sizes))
    assert scores == [200, 200, 199, 0]
    assert kept(ImageSide(), scores) == [[True, True, False, False]]


def test_image_side_reads_no_further_than_the_header():
    assert scored(ImageSide(), sample("k", image=plain()[:64])) == [300]
    with pytest.raises(ImageError, match="image is empty"):
        scored(ImageSide(), sample("k", image=b""))


def test_image_bytes_is_the_size_of_the_file_also_where_it_is_no_picture():
    scores = scored(ImageBytes(), *(sample("k", image=bytes(n)) for n in (0, 4999, 5000)))
    assert scores == [0, 4999, 5000]
    assert kept(ImageBytes(), scores) == [[False, False, True]]


@pytest.mark.parametrize(
    ("colours", "contrast"),
    [([(9, 9, 9)], 0), ([(0, 0, 0), (0, 15, 3)], 15), ([(0, 0, 0), (0, 0, 16)], 16)],
)
def test_one_colour_is_the_largest_difference_in_any_channel(colours, contrast):
    image, data = Image.new("RGB", (20, 20), colours[0]), io.BytesIO()
    image.putpixel((3, 4), colours[-1])
    image.save(data, "PNG")
    scores = scored(OneColour(), sample("k", image=data.getvalue()))
    assert scores == [contrast]
    assert kept(OneColour(), scores) == [[contrast >= 16]]


def test_a_blank_jpeg_is_of_one_colour():
    data = io.BytesIO()
    Image.new("RGB", (99, 77), (240, 241, 239)).save(data, "JPEG", quality=30)
    assert kept(OneColour(), scored(OneColour(), sample("k", image=data.getvalue()))) == [[False]]


@pytest.mark.parametrize(
    ("by", "expected"), [("image", "abd"), ("caption", "ac"), ("pair", "abcd")]
)
def test_exact_duplicate_compares_what_it_is_told_to(by, expected):
    red, blue, green = (plain(colour=colour) for colour in ("red", "blue", "green"))
    pairs = [("one", red), ("one", blue), ("two", red), ("two", green), ("two", green)]
    part = ExactDuplicate(by=by)
    (mask,) = kept(part, scored(part, *(sample("k", *pair) for pair in pairs)))
    assert "".join(itertools.compress("abcde", mask)) == expected


def test_exact_duplicate_agrees_with_a_naive_loop():
    samples, seen, expected = many(), set(), []
    for one in samples:
        expected.append((one.image, one.text) not in seen)
        seen.add((one.image, one.text))
    values = scored(part := ExactDuplicate(by="pair"), *samples)
    shards = [values[n : n + 7] for n in range(0, 40, 7)]
    assert list(itertools.chain(*kept(part, *shards))) == expected


def test_the_likeliest_language_counts_sure_or_not_unless_asked_for():
    captions = [
        "A photo of my dog in the snow",
        "Zapatos rojos de mujer",
        "赤い靴",
        "a koala\n sitting in a tree",
        "Kitchen",  # English, by 46 %
        " \n",
        "a \ud800 dog in the snow",
    ]
    several = [sample("k", text) for text in captions]
    scores = scored(Language(), *several)
    assert scores == ["en", "es", "ja", "en", "en", "unknown", "en"]
    assert kept(Language(), scores) == [[1, 0, 0, 1, 1, 0, 1]]
    assert kept(Language(languages=("es", "unknown")), scores) == [[0, 1, 0, 0, 0, 1, 0]]
    assert scored(Language(confidence=0.5), *several)[4] == "unknown"


def test_a_language_that_no_caption_can_have_is_refused():
    with pytest.raises(UserError, match="Did you mean en"):
        Language(languages=("eng",)).identity()
    with pytest.raises(UserError, match="no model of fastText"):
        Language(model=__file__).identity()


def test_opted_out_heeds_what_img2dataset_heeds():
    headers = {
        "noai": True,
        "NoIndex, nofollow": True,
        "nofollow": False,
        "otherbot: noai": False,
        "vlp: noimageai": True,
        "unavailable_after: 25 Jun 2010 15:00:00 PST": False,
        "": False,
    }
    part = OptedOut(user_agent="vlp")
    samples = [sample("k", x_robots_tag=header) for header in headers]
    assert [bool(value) for value in scored(part, *samples)] == list(headers.values())
    others = [sample("k", opt_out=True), sample("k", opt_out=False), sample("k")]
    several = sample("k", **{"X-Robots-Tag": ["all", "noindex"]})
    assert scored(part, *others, several) == [1, 0, 0, 1]
    assert kept(part, [1, 0]) == [[False, True]]


def test_metadata_number_fails_where_there_is_none():
    part = MetadataNumber(field="punsafe", max=0.5)
    samples = [sample("k", punsafe=0.2), sample("k", punsafe="0.7"), sample("k", punsafe=True)]
    assert scored(part, *samples) == [0.2, 0.7, 1.0]
    for metadata in ({}, {"punsafe": None}, {"punsafe": "x"}, {"punsafe": [1]}):
        with pytest.raises(SampleFault, match="no number in punsafe"):
            scored(part, sample("k", **metadata))
    nested = sample("k", **{"scores": {"nsfw": 0.1}, "a.b": 3})
    assert scored(MetadataNumber(field="scores.nsfw", min=0), nested) == [0.1]
    assert scored(MetadataNumber(field="a.b", min=0), nested) == [3.0]
    assert kept(part, [0.5, 0.7, None]) == [[True, False, False]]


def test_clip_score_is_the_cosine_of_the_models_features(encoder, model):
    from vlp.encode import encode_images, encode_texts

    given = candidates(pairs(3))
    image = encode_images(encoder, [one.picture for one in given])
    text = encode_texts(encoder, [one.text for one in given])
    scores = ClipScore(model=str(model), top=0.3).score(given)
    np.testing.assert_allclose(scores, (image * text).sum(1), atol=1e-6)
    assert all(-1 <= score <= 1 for score in scores)


def test_ids_follow_from_keys_alone():
    assert Candidate.of(sample("a")).id == hash64("a") != hash64("b")


def test_what_one_sample_has_wrong_is_its_fault_alone():
    odd = Candidate.of(sample("a", "bad \ud800"))
    assert len(ExactDuplicate(by="caption").score([odd])[0]) == 16
    with pytest.raises(SampleFault, match="no number in size"):
        MetadataNumber(field="size", min=0).score([Candidate.of(sample("b", size=10**400))])


@pytest.mark.parametrize("value", ["yes", "1", "True", True, 1, "noai", "noimageai, nofollow"])
def test_who_says_no_has_opted_out(value):
    assert OptedOut().score([Candidate.of(sample("a", opt_out=value))]) == [1]


@pytest.mark.parametrize("value", ["no", "0", "", None, False, 0, float("nan"), "nofollow"])
def test_who_says_nothing_has_not_opted_out(value):
    assert OptedOut().score([Candidate.of(sample("a", opt_out=value))]) == [0]
