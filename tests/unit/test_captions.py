"""Which caption of a sample is read: by priority, by weight, drawn by the sample's seed."""

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from tests_support import picture

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice, caption_key
from data_pipelines.faults import SampleFault
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Row
from data_pipelines.reader import Reader
from data_pipelines.shards import open_shards, read, write_shards
from vlp.errors import UserError
from vlp.types import Sample


def draw(text, sample, count=1) -> Counter:
    choice = CaptionChoice.parse(text)
    return Counter(choice.draw(sample, np.random.default_rng(i)) for i in range(count))


def sample(text="main", **metadata) -> Sample:
    return Sample("k", b"", text, metadata)


def first_batch(folder, encoder, **changes):
    shards = open_shards(folder)
    options = {
        "sources": [shards],
        "plan": Plan([Row(shards.counts, 0)], len(shards)),
        "tokenizer": encoder.tokenizer,
        "image_size": (16, 16),
        "augmentation": Augmentation(),
        "captions": CaptionChoice.parse("txt"),
    }
    return next(Loader(Reader(**{**options, **changes}), workers=0).batches(0))


@pytest.mark.parametrize(
    ("metadata", "caption"),
    [
        ({"recap": "new", "alt": "old"}, "new"),
        ({"alt": "old"}, "old"),
        ({"recap": "", "alt": " old "}, "old"),
        ({"recap": None, "alt": []}, "main"),
        ({"recap": [None, " "], "alt": 7}, "7"),
        ({}, "main"),
    ],
)
def test_the_first_field_that_a_sample_has_is_its_caption(metadata, caption):
    assert set(draw("recap>alt>txt", sample(**metadata), 20)) == {caption}


def test_chains_are_drawn_by_weight():
    both = sample(alt="old", recap="new")
    drawn = draw("alt:1 recap>alt:3", both, 4000)
    assert drawn["new"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert set(drawn) == {"old", "new"}


def test_weights_need_not_add_up_to_one():
    for text in ("txt:2 alt:2", "txt alt", "txt:0.5 alt:0.5"):
        assert CaptionChoice.parse(text).weights == (0.5, 0.5)


def test_a_sample_without_the_drawn_field_takes_another_chain():
    assert set(draw("alt recap txt:0.001", sample(recap="new"), 50)) == {"new"}


def test_a_sample_without_any_of_the_fields_is_a_fault():
    with pytest.raises(SampleFault, match="no caption"):
        draw("alt>recap", sample())


def test_a_list_gives_one_to_all_of_its_entries_in_any_order():
    drawn = draw("keywords", sample(keywords=["a", None, " b ", ""]), 300)
    assert set(drawn) == {"a", "b", "a b", "b a"}


@pytest.mark.parametrize("text", ["txt:nan", "txt alt:inf", "txt:1 alt:nan", "a>", ">a", "a>>b"])
def test_weights_that_are_no_shares_and_fields_without_names_are_refused(text):
    with pytest.raises(UserError, match=r"Cannot read the captions .* Write fields with weights"):
        CaptionChoice.parse(text)


def test_only_txt_is_plain():
    plain = {text: CaptionChoice.parse(text).is_plain for text in ("txt", "txt alt", "alt>txt")}
    assert plain == {"txt": True, "txt alt": False, "alt>txt": False}


def test_case_and_runs_of_white_space_make_no_difference():
    assert caption_key(" A  Red\nfield ") == caption_key("a red FIELD") != caption_key("a redfield")


def test_more_texts_of_a_sample_leave_the_first_as_it_is(tmp_path, encoder):
    lines = "\n".join(f"caption number {n}" for n in range(9))
    write_shards([Sample(f"{i}", picture(noise=i), lines) for i in range(12)], tmp_path)
    one = first_batch(tmp_path, encoder)
    three = first_batch(tmp_path, encoder, text_views=3)
    assert torch.equal(one.tokens, three.tokens)
    assert torch.equal(one.images, three.images)
    assert one.text_views is None
    assert three.text_views is not None
    assert three.text_views.shape == (2, *one.tokens.shape)
    assert not torch.equal(three.text_views[0], three.tokens)


def test_samples_of_json_alone_match_by_the_caption_that_was_drawn(tmp_path, encoder):
    texts = ["a cat", "A  cat", "a dog", "a cow"] * 3
    write_shards(
        [Sample(f"{i}", picture(noise=i), "", {"recap": t}) for i, t in enumerate(texts)], tmp_path
    )
    batch = first_batch(tmp_path, encoder, captions=CaptionChoice.parse("recap"))
    by_key = dict(zip(batch.keys, batch.group.tolist(), strict=True))
    assert by_key["0"] == by_key["1"] == by_key["4"]
    assert len(set(by_key.values())) == 3


CAPTIONS_OF_JSON = {
    "a text": ("a dog", {"a dog"}),
    "texts": (["a dog", "a\ncat", 7], {"a dog", "a cat"}),
    "an object": ({"a": 1}, None),
    "not a number": (float("nan"), None),
    "yes or no": (True, None),
    "nothing": (None, None),
}


@pytest.mark.parametrize("kind", CAPTIONS_OF_JSON)
def test_only_texts_of_json_are_captions_without_a_txt(kind, tmp_path):
    caption, wanted = CAPTIONS_OF_JSON[kind]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("0.png", picture()), ("0.json", json.dumps({"caption": caption}))):
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (entry,) = open_shards(tmp_path).entries
    if wanted is None:
        with pytest.raises(SampleFault, match="no caption"):
            read(entry)
        return
    text = read(entry).text
    choice = CaptionChoice.parse("txt")
    drawn = {choice.draw(Sample("0", b"", text), np.random.default_rng(i)) for i in range(20)}
    assert drawn == wanted


def test_separators_of_web_captions_are_white_space_and_not_line_ends():
    choice = CaptionChoice.parse("txt")
    sample = Sample("0", b"", "a dog\u2028in the\x0bsnow")
    drawn = {choice.draw(sample, np.random.default_rng(i)) for i in range(9)}
    assert drawn == {"a dog\u2028in the\x0bsnow"}
