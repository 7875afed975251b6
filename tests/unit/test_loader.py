"""Batches follow from the samples seen; a broken sample gives its place to another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import pairs, picture

from data_pipelines.augment import Augmentation, change, outlined
from data_pipelines.captions import CaptionChoice
from data_pipelines.decode import training_views
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Row
from data_pipelines.reader import Reader
from data_pipelines.shards import open_shards, write_shards
from vlp.errors import UserError
from vlp.types import Sample


def make(folder, encoder, **changes) -> Loader:
    own = {"workers": 0}
    shards = open_shards(folder)
    for name in ("process", "num_processes", "workers", "max_bad"):
        own |= {name: changes.pop(name)} if name in changes else {}
    options = {
        "sources": [shards],
        "plan": Plan([Row(shards.counts, 0)], 16),
        "tokenizer": encoder.tokenizer,
        "image_size": (32, 32),
        "augmentation": Augmentation(scale=(0.4, 1.0), flip=0.5, hue=0.1, brightness=0.3),
        "captions": CaptionChoice.parse("txt"),
    }
    return Loader(Reader(**{**options, **changes}), **own)


def take(loader: Loader, samples_seen: int, count: int) -> list:
    batches = loader.batches(samples_seen)
    return [next(batches) for _ in range(count)]


def test_a_run_that_goes_on_gets_the_batches_that_would_have_followed(shards, encoder):
    whole = take(make(shards, encoder), 0, 8)
    rest = take(make(shards, encoder, workers=3), 5 * 16, 3)
    for one, other in zip(whole[5:], rest, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.seed, other.seed)


def test_processes_split_the_batch_that_one_process_reads(shards, encoder):
    whole = take(make(shards, encoder), 0, 2)
    halves = [take(make(shards, encoder, process=p, num_processes=2), 0, 2) for p in range(2)]
    for step in range(2):
        images = torch.stack([halves[p][step].images for p in range(2)], 1).flatten(0, 1)
        assert torch.equal(images, whole[step].images)


def test_another_epoch_sees_another_crop_of_the_same_sample(shards, encoder):
    batches = take(make(shards, encoder), 0, 8)  # two epochs of 64
    first = {key: image for b in batches[:4] for key, image in zip(b.keys, b.images, strict=True)}
    later = {key: image for b in batches[4:] for key, image in zip(b.keys, b.images, strict=True)}
    assert set(first) == set(later)
    assert sum(torch.equal(first[key], later[key]) for key in first) < 8


@pytest.fixture
def half_broken(tmp_path):
    samples = pairs(32)
    broken = [replace(s, image=s.image[:60]) if i % 4 == 0 else s for i, s in enumerate(samples)]
    write_shards(broken, tmp_path / "broken", samples_per_shard=16)
    return tmp_path / "broken"


def test_a_broken_sample_is_counted_and_another_of_its_shard_takes_its_place(half_broken, encoder):
    loaders = [make(half_broken, encoder, workers=w) for w in (0, 3)]
    one, other = (take(loader, 0, 2) for loader in loaders)
    assert [b.keys for b in one] == [b.keys for b in other]
    broken = {f"{i:05d}" for i in range(0, 32, 4)}
    assert not broken & {key for b in one for key in b.keys}
    assert all(len(b.keys) == 16 for b in one)
    take(loaders[0], 0, 4)  # a second epoch meets the same broken samples
    assert loaders[0].faults().as_dict()["image ends early"]["count"] == 8


def test_a_shard_without_a_readable_sample_stops_with_its_name(tmp_path, encoder):
    broken = [replace(s, image=b"no picture") for s in pairs(16)]
    write_shards(broken, tmp_path / "broken")
    with pytest.raises(UserError, match=r"000000.tar gives no readable sample.*not known"):
        take(make(tmp_path / "broken", encoder), 0, 1)


def test_equal_captions_are_one_group_whatever_their_case_and_spaces(tmp_path, encoder):
    texts = ["A red field", "a  RED field ", "a blue field", "a green field"] * 4
    samples = [
        Sample(f"{i}", picture(noise=i), text, {"cls": i % 2}) for i, text in enumerate(texts)
    ]
    write_shards(samples, tmp_path / "s")
    batch = take(make(tmp_path / "s", encoder), 0, 1)[0]
    by_key = dict(zip(batch.keys, batch.group.tolist(), strict=True))
    assert by_key["0"] == by_key["1"] == by_key["4"] != by_key["2"]
    labels = take(make(tmp_path / "s", encoder, group="label"), 0, 1)[0].group
    assert len(set(labels.tolist())) == 2
    alone = take(make(tmp_path / "s", encoder, group="none"), 0, 1)[0].group
    assert len(set(alone.tolist())) == 16


def test_captions_cut_off_are_counted(tmp_path, encoder):
    texts = ["short", "word " * 60]
    samples = [Sample(f"{i}", picture(noise=i), texts[i % 2]) for i in range(16)]
    write_shards(samples, tmp_path / "s")
    loader = make(tmp_path / "s", encoder)
    take(loader, 0, 1)
    assert (loader.tally.reads, loader.tally.captions_cut) == (16, 8)


def test_captions_are_drawn_by_weight():
    choice = CaptionChoice.parse("txt:3 keywords:1")
    sample = Sample("k", b"", "main", {"keywords": ["x"]})
    drawn = [choice.draw(sample, np.random.default_rng(i)) for i in range(2000)]
    assert 0.7 < drawn.count("main") / 2000 < 0.8
    bare = Sample("k", b"", "main", {})
    assert {choice.draw(bare, np.random.default_rng(i)) for i in range(50)} == {"main"}


@pytest.mark.parametrize("text", ["", "txt:x", "txt:-1", "txt:0"])
def test_captions_that_make_no_sense_say_what_to_write(text):
    with pytest.raises(UserError, match=r"Write fields with weights"):
        CaptionChoice.parse(text)


def test_an_augmented_picture_has_the_size_asked_for_whatever_its_own(encoder):
    options = Augmentation(
        rotate=20, shift=0.2, zoom=(0.5, 2), hue=0.3, contrast=0.4, grayscale=0.5
    )
    for size in ((1, 1), (3, 500), (500, 3), (64, 64)):
        draws = [np.random.default_rng(seed) for seed in range(2)]
        for view in training_views(picture(size=size), [(24, 40)] * 2, options, draws):
            assert view.shape == (3, 24, 40)


def two_colours():
    pixels = np.full((32, 32, 3), 200, np.uint8)
    pixels[:, 16:] = (40, 90, 200)
    return pixels


def test_outlines_are_dark_lines_where_colours_change_and_nowhere_else():
    pixels = two_colours()
    drawn = outlined(pixels, np.random.default_rng(0))
    assert (drawn[:, 14:18].max(2) < pixels[:, 14:18].max(2)).any(1).all()
    assert np.array_equal(drawn[:, :13], pixels[:, :13])
    assert np.array_equal(drawn[:, 19:], pixels[:, 19:])


def test_outlines_are_drawn_on_their_share_of_pictures():
    image = Image.fromarray(two_colours())
    for share, is_drawn in ((0.0, False), (1.0, True)):
        options = Augmentation(outline=share)
        assert options.changes == is_drawn
        pixels = np.array(change(image, options, np.random.default_rng(0)))
        assert np.array_equal(pixels, two_colours()) != is_drawn


def test_an_augmentation_out_of_range_is_refused():
    with pytest.raises(UserError, match="outline"):
        Augmentation(outline=1.5)
    with pytest.raises(UserError, match="crop scale"):
        Augmentation(scale=(0.9, 1.2))
    with pytest.raises(UserError, match="hue"):
        Augmentation(hue=0.7)


def test_several_captions_a_line_each_are_drawn_in_turn():
    sample = Sample("k", b"", "one\ntwo \n\nthree", {})
    choice = CaptionChoice.parse("txt")
    drawn = {choice.draw(sample, np.random.default_rng(i)) for i in range(50)}
    assert drawn == {"one", "two", "three"}


def test_equal_keys_in_shards_of_equal_names_are_different_samples(tmp_path, encoder):
    for part in ("a", "b"):
        write_shards(pairs(8), tmp_path / "two" / part)
    batch = take(make(tmp_path / "two", encoder, group="none"), 0, 1)[0]
    assert len(set(batch.group.tolist())) == 16
    assert len(set(batch.seed.tolist())) == 16
