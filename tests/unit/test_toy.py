import itertools
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageChops

from data_pipelines import quickstart, toy
from data_pipelines.drawing import COLOURS, OUTLINES, SIZES, TEXTURES
from vlp.errors import UserError
from vlp.image import ImageError, decode, size
from vlp.output import write_record
from vlp.types import Sample

COUNT = 300
CLEAN = {"swapped_caption": 0.0}
"""Shares that plant nothing."""


@pytest.fixture(scope="module")
def training() -> list[Sample]:
    return list(toy.draw_training(COUNT, seed=0))


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return list(toy.draw_evaluation(500, seed=0))


@pytest.fixture(scope="module")
def single_shapes() -> list[Sample]:
    return list(toy.draw_single_shapes(2, seed=0))


def planted(samples: list[Sample], defect: str | None) -> list[Sample]:
    return [sample for sample in samples if sample.metadata[toy.MARK] == defect]


def pixels(sample: Sample) -> bytes:
    return decode(sample.image).tobytes()


def readable(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.metadata[toy.MARK] != "broken_file"]


def classes(sample: Sample) -> set[str]:
    return {f"{shape['colour']} {shape['shape']}" for shape in sample.metadata["shapes"]}


def read_noun(noun: str) -> dict[str, str]:
    """Return what a noun phrase says, such as ``{"colour": "red", "shape": "circle"}``."""
    lists = {"shape": OUTLINES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
    said = {name: word for word in noun.split() for name, words in lists.items() if word in words}
    assert len(said) == len(noun.split()), f"a word of {noun!r} is not known"
    return said


def read_caption(caption: str) -> tuple[dict[str, str], list[tuple[str, dict[str, str]]]]:
    """Return the subject of a caption, and each relation with what it relates to."""
    phrases = {phrase: name for name, ways in toy.PHRASES.items() for phrase in ways}
    bare = re.sub("^(there is |a picture of )", "", caption)
    longest_first = sorted(phrases, key=len, reverse=True)
    subject, *rest = re.split(f" (?:and )?({'|'.join(longest_first)}) ", bare)
    nouns = [read_noun(noun.removeprefix("a ")) for noun in (subject, *rest[1::2])]
    return nouns[0], list(zip([phrases[p] for p in rest[::2]], nouns[1:], strict=True))


def find(said: dict[str, str], sample: Sample) -> dict:
    """Return the one shape of the scene that a noun phrase names; all it says must be true."""
    key = f"{said['colour']} {said['shape']}"
    shapes = sample.metadata["shapes"]
    (shape,) = [s for s in shapes if f"{s['colour']} {s['shape']}" == key]
    assert said.items() <= shape.items()
    return shape


def is_true(relation: str, subject: dict, other: dict) -> bool:
    right, down = subject["x"] - other["x"], subject["y"] - other["y"]
    ahead, aside = {
        "left of": (-right, down),
        "right of": (right, down),
        "above": (-down, right),
        "below": (down, right),
    }[relation]
    return ahead > 3 * abs(aside)


def test_the_same_seed_draws_the_same_world_and_another_seed_another(training):
    assert list(toy.draw_training(COUNT, seed=0)) == training
    assert list(toy.draw_training(COUNT, seed=1)) != training


def test_a_longer_evaluation_draw_begins_with_the_shorter(scenes):
    assert list(toy.draw_evaluation(20, seed=0)) == scenes[:20]


@pytest.mark.parametrize("training_seed", [0, 7])
def test_no_image_and_no_caption_of_evaluation_is_in_training(training_seed, scenes, single_shapes):
    training = list(toy.draw_training(600, training_seed))
    captions = {sample.text for sample in training}
    drawn = {pixels(sample) for sample in readable(training)}
    described = {
        json.dumps([[v for k, v in s.items() if k not in "xy"] for s in sample.metadata["shapes"]])
        for sample in training
    }
    for sample in scenes + single_shapes:
        assert sample.text not in captions
        assert pixels(sample) not in drawn
        shapes = sample.metadata["shapes"]
        assert (
            json.dumps([[v for k, v in s.items() if k not in "xy"] for s in shapes])
            not in described
        )


def test_a_caption_that_may_be_of_either_side_is_never_given_in_evaluation(training, scenes):
    for sample in scenes:
        subject, relations = read_caption(sample.text)
        assert all("size" in said for said in (subject, *(other for _, other in relations)))
    brief = [s for s in planted(training, None) if not {"small", "large"} & set(s.text.split())]
    assert len(brief) > COUNT / 10


def test_some_colours_and_shapes_never_meet_in_training_and_each_is_seen_with_others():
    seen = set().union(*(classes(s) for s in toy.draw_training(800, seed=3, shares=CLEAN)))
    every = {f"{colour} {shape}" for colour in COLOURS for shape in OUTLINES}
    assert every - seen == set(toy.NEW_PAIRS)
    shown = set(quickstart.NAMES) | {" ".join(q.split()[-2:]) for q in quickstart.QUERIES}
    assert not shown & set(toy.NEW_PAIRS)


def test_evaluation_scenes_have_unique_captions_and_images(scenes):
    assert len(scenes) == 500
    assert len({sample.text for sample in scenes}) == 500
    assert len({pixels(sample) for sample in scenes}) == 500
    assert planted(scenes, None) == scenes


def test_two_evaluation_scenes_never_have_the_same_description(scenes):
    described = Counter(
        (sample.metadata["layout"], *(tuple(s.values())[:4] for s in sample.metadata["shapes"]))
        for sample in scenes
    )
    assert max(described.values()) == 1


def test_every_colour_of_every_shape_is_a_class_with_equally_many_drawings(single_shapes):
    names = toy.zero_shot_classes()["classnames"]
    assert len(set(names)) == len(COLOURS) * len(OUTLINES) == 64
    assert Counter(sample.metadata["class"] for sample in single_shapes) == dict.fromkeys(names, 2)
    assert len({pixels(sample) for sample in single_shapes}) == 128


@pytest.mark.parametrize("opening", toy.zero_shot_classes()["templates"])
def test_a_template_filled_with_a_class_is_a_caption_of_the_world(opening):
    for name in toy.zero_shot_classes()["classnames"]:
        subject, relations = read_caption(opening.format(name))
        assert f"{subject['colour']} {subject['shape']}" == name
        assert not relations


def test_what_a_caption_says_of_the_shapes_and_where_they_are_is_true(training, scenes):
    said = set()
    for sample in planted(training, None) + scenes:
        subject, relations = read_caption(sample.text)
        assert len(relations) == len(sample.metadata["shapes"]) - 1
        for relation, other in relations:
            said.add((len(relations), relation))
            assert is_true(relation, find(subject, sample), find(other, sample)), sample.text
        assert find(subject, sample)
    assert said == set(itertools.product((1, 2), toy.PHRASES))


def test_the_shapes_are_drawn_where_the_metadata_says_in_their_colour(scenes):
    for sample in scenes[:100]:
        picture = np.asarray(decode(sample.image), dtype=float)
        for shape in sample.metadata["shapes"]:
            centre = np.array([shape["y"], shape["x"]]) * 64
            top, left = (centre - SIZES[shape["size"]] * 64).round().astype(int).clip(0)
            side = round(2 * SIZES[shape["size"]] * 64)
            patch = picture[top : top + side, left : left + side].reshape(-1, 3)
            # The rim has the full colour even where the inside is mostly light.
            near = np.abs(patch - COLOURS[shape["colour"]]).max(axis=1) < 40
            assert near.mean() > 0.08, sample.text


def test_pictures_are_whole_and_shapes_lie_inside_them(training, scenes, single_shapes):
    for sample in scenes + single_shapes + planted(training, None):
        assert size(sample.image) == (64, 64)
        for shape in sample.metadata["shapes"]:
            for place in (shape["x"], shape["y"]):
                assert 0 <= place - SIZES[shape["size"]] <= 1 - 2 * SIZES[shape["size"]] + 1e-9


@pytest.mark.parametrize("defect", toy.DEFECTS)
def test_each_defect_is_planted_in_its_share_of_the_samples(defect, training):
    assert len(planted(training, defect)) == round(toy.DEFECTS[defect] * COUNT)


def test_every_defect_has_a_share_and_a_way_to_plant_it():
    assert set(toy.DEFECTS) == set(toy.PLANT)
    assert sum(toy.DEFECTS.values()) < 0.5


def test_without_shares_nothing_is_planted(training):
    clean = list(toy.draw_training(COUNT, seed=0, shares=CLEAN))
    assert planted(clean, None) == clean
    places = [int(sample.key) for sample in planted(training, None)]
    assert [clean[place] for place in places] == planted(training, None)


def test_a_swapped_caption_is_the_caption_of_another_pair_and_wrong(training):
    captions = {sample.text for sample in planted(training, None)}
    for sample in planted(training, "swapped_caption"):
        assert sample.text in captions
        subject, relations = read_caption(sample.text)
        nouns = (subject, *(other for _, other in relations))
        assert classes(sample).isdisjoint(f"{n['colour']} {n['shape']}" for n in nouns)


def test_an_exact_duplicate_has_the_bytes_of_a_clean_pair(training):
    clean = planted(training, None)
    for sample in planted(training, "exact_duplicate"):
        (first,) = [other for other in clean if other.image == sample.image]
        assert first.key != sample.key
        assert replace(sample, key=first.key).text == first.text


def test_a_near_duplicate_looks_like_a_clean_pair_but_has_other_bytes(training):
    clean = {json.dumps(s.metadata["shapes"]): s for s in planted(training, None)}
    for sample in planted(training, "near_duplicate"):
        first = clean[json.dumps(sample.metadata["shapes"])]
        assert sample.image != first.image
        assert sample.text == first.text
        assert 48 <= size(sample.image)[0] <= 96
        apart = ImageChops.difference(decode(sample.image).resize((64, 64)), decode(first.image))
        assert 0 < np.asarray(apart).mean() < 25


def test_a_tiny_image_is_at_most_14_pixels_wide(training):
    assert {max(size(s.image)) <= 14 for s in planted(training, "tiny_image")} == {True}
    assert {min(size(s.image)) >= 64 for s in planted(training, None)} == {True}


def test_a_broken_file_cannot_be_decoded_and_every_other_can(training):
    for sample in planted(training, "broken_file"):
        with pytest.raises(ImageError):
            decode(sample.image)
    for sample in readable(training):
        decode(sample.image)


def test_a_text_only_image_is_grey_writing_on_white_without_a_shape(training):
    for sample in planted(training, "text_only_image"):
        picture = np.asarray(decode(sample.image), dtype=int)
        assert np.ptp(picture, axis=2).max() < 12
        assert (picture.min(axis=2) > 200).mean() > 0.5
        assert (picture.max(axis=2) < 100).mean() > 0.01
        assert sample.metadata["shapes"] == []
        read_caption(sample.text)  # the writing is a caption of the world


def test_a_boilerplate_caption_names_no_colour_and_no_shape(training):
    words = {*COLOURS, *OUTLINES}
    captions = [sample.text for sample in planted(training, "boilerplate_caption")]
    assert not any(words & set(caption.split()) for caption in captions)
    assert not any("{" in caption for caption in captions)


def test_keys_are_unique_and_everything_but_the_bytes_is_json(training, scenes, single_shapes):
    for samples in (training, scenes, single_shapes):
        assert len({sample.key for sample in samples}) == len(samples)
        for sample in samples:
            assert json.loads(json.dumps(sample.metadata)) == sample.metadata


def test_no_caption_is_longer_than_the_24_tokens_of_the_tiny_encoder(training, scenes):
    # Every word of the world is one token of CLIP's vocabulary; two more start and end a caption.
    longest = max(len(s.text.split()) for s in planted(training, None) + scenes)
    assert longest + 2 <= 24


def test_a_tour_that_overwrites_another_command_leaves_nothing_of_it(tmp_path, monkeypatch):
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    write_record(tmp_path / "out", "train", {})
    with pytest.raises(UserError, match=r"was written by `vlp train`"):
        quickstart.run(tmp_path / "out", samples=5000, seed=0, overwrite=False)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "_draw", stop)
    with pytest.raises(KeyboardInterrupt):
        quickstart.run(tmp_path / "out", samples=5000, seed=0, overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
