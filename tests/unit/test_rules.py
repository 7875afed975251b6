"""Rules as a person writes them: what a filter, a preset and a list of them become, and refuse."""

import re
from pathlib import Path

import numpy as np
import pytest
from curation_support import kept, plain, red_model, sample, scored

from data_pipelines.curation.files import forget
from data_pipelines.curation.presets import PRESETS
from data_pipelines.curation.rules import FAMILY, column_name, parts_of, read_rules
from data_pipelines.filter import filter_shards
from data_pipelines.filters.listed import Listed
from data_pipelines.filters.onnx_score import OnnxScore
from data_pipelines.shards import write_shards
from data_pipelines.uids import UID
from vlp.errors import UserError
from vlp.spec import names

BLANKS = {"model": "run/", "target": "features/", "against": "shards/"}


def texts(*keep):
    return [rule.text for rule in read_rules(keep)]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_rules_that_can_be_built_and_names_its_source(name):
    preset = PRESETS[name]
    options = {blank: BLANKS[blank] for blank in preset.blanks() - set(preset.defaults)}
    written = ", ".join(f"{option}={value!r}" for option, value in options.items())
    rules = read_rules([f"{name}({written})" if written else name])
    assert len(rules) == len(preset.texts)
    assert preset.source


def test_the_presets_are_what_their_papers_say():
    assert texts("datacomp_basic") == [
        "caption_words(min=3)",
        "caption_characters(min=6)",
        "image_side(min=200)",
        "language",
    ]
    assert read_rules(["datacomp_basic"])[2].parts[0].filter.max_aspect == 3.0
    assert texts("laion(model='ViT-B-32:openai', min=0.3)")[-1] == (
        "clip_score(model='ViT-B-32:openai', min=0.3)"
    )
    assert texts("laion(model='m')")[-1] == "clip_score(model='m', min=0.28)"
    best = read_rules(["datacomp_1b(model='m', target='t')"])[-1]
    assert best.text == "clip_score(model='m', top=0.3)"
    assert best.parts[0].filter.of == "pool"  # whatever the clusters left


def test_a_preset_stands_among_other_rules_and_takes_its_own_options_only():
    assert texts("decodable", "datacomp_basic", "one_colour") == [
        "decodable",
        *texts("datacomp_basic"),
        "one_colour",
    ]
    with pytest.raises(UserError, match=r"laion: The preset .* min=0.28, model='...'"):
        read_rules(["laion"])
    with pytest.raises(UserError, match="takes the options none"):
        read_rules(["datacomp_basic(model='m')"])


def test_columns_tell_scores_apart_and_not_decisions():
    rules = read_rules(
        [
            "caption_words(min=3)",
            "caption_words(max=20)",
            "exact_duplicate(by='caption')",
            "any_of(parts=('caption_words(min=9)', 'image_side(max_aspect=2.0)'))",
        ]
    )
    assert list(parts_of(rules)) == [
        "caption_words",
        "exact_duplicate(by='caption')",
        "image_side(max_aspect=2.0)",
    ]
    assert [len(rule.parts) for rule in rules] == [1, 1, 1, 2]
    assert column_name("image_side", read_rules(["image_side(min=9)"])[0].parts[0].filter) == (
        "image_side"
    )


def test_no_rule_and_no_such_filter_name_all_that_there_are():
    for keep in ([], ["zzz"]):
        with pytest.raises(UserError) as error:
            read_rules(keep)
        for name in (*names(FAMILY), "any_of", *PRESETS):
            assert re.search(rf"\b{name}\b", str(error.value))


@pytest.mark.parametrize("kind", [names(FAMILY), list(PRESETS)], ids=["filters", "presets"])
def test_the_tables_in_the_docs_name_all_and_no_others(kind):
    told = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)", told)
    assert set(kind) <= set(rows) <= {*names(FAMILY), *PRESETS}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["caption_word"], "no filter called 'caption_word'. Did you mean caption_words"),
        (["datacomp_basics"], "Did you mean datacomp_basic"),
        (["any_off(parts=('decodable',))"], "Did you mean any_of"),
        (["data_pipelines.faults"], "faults is no filter. Filters: .*caption_words"),
        (["caption_words(top=0)"], r"caption_words\(top=0\): top=0 is no share"),
        (["caption_words(top=1.5)"], "top=1.5 is no share"),
        (["caption_words(top=(0.3, 0.1))"], "is no band. Write the smaller share first"),
        (["caption_words(top=(0.1, 0.2, 0.3))"], r"top cannot be \(0.1, 0.2, 0.3\), a tuple"),
        (["caption_words(top=())"], r"top cannot be \(\), a tuple"),
        (["caption_words(of='all')"], "of cannot be 'all'"),
        (["caption_words(min=5, max=2)"], "min=5 is above max=2"),
        (["caption_words(top=True)"], "top cannot be True, a bool"),
        (["caption_words(min='a')"], "min cannot be 'a', a str"),
        (["clip_score(model='m')"], "without min, max or top every sample stays"),
        (["clip_score(top=0.3)"], "missing a required argument: 'model'"),
        (["image_side(min=0)"], "min=0 is below 1 pixel"),
        (["image_side(max_aspect=0.5)"], "max_aspect=0.5 cannot be met"),
        (["exact_duplicate(by='sound')"], "by='sound' is not known"),
        (["exact_duplicate(top=0.5)"], "unexpected keyword argument 'top'"),
        (["language(languages='en')"], "languages cannot be 'en', a str"),
        (["language(confidence=7)"], "confidence=7 is no probability"),
        (["pdq_duplicate(radius=65)"], "radius=65 is out of range"),
        (["any_of(parts=())"], "Write any_of"),
        (["any_of(parts=('caption_word',))"], "Did you mean caption_words"),
        (["onnx_score(path='no.onnx', top=0.3)"], r"Cannot read no\.onnx"),
        (["listed(path='no.parquet')"], "Cannot read the keep-list"),
        (["listed(path='no.npy')"], "Cannot read the keep-list"),
        (["language(among=('en', 'xx'))"], "xx"),
        (
            ["caption_words(min=4)", "image_side"],
            r"caption_words\(min=4\) dropped most: 2 of the 2",
        ),
    ],
)
def test_bad_rules_get_one_line(tmp_path, keep, message):
    write_shards([sample("a"), sample("b")], tmp_path / "raw")
    with pytest.raises(UserError, match=message) as error:
        filter_shards(str(tmp_path / "raw"), tmp_path / "clean", keep=keep)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "clean").exists()


def test_a_list_of_uids_keeps_the_first_of_a_uid_as_often_as_it_says(tmp_path):
    uids = np.array([(0, 1), (0, 1), (0, 3), (7, 7)], UID)
    np.save(tmp_path / "keep.npy", uids)
    part = Listed(path=str(tmp_path / "keep.npy"))
    own = [f"{n:032x}" for n in (1, 2, 3, 1)]
    scores = scored(part, *(sample(str(n), uid=uid) for n, uid in enumerate(own)), sample(own[2]))
    assert scores == [*own, own[2]]
    assert kept(part, scores) == [[2, 0, 1, 0, 0]]
    assert kept(part, scores[:2], scores[2:], left=[[False, True], [True, True, True]]) == [
        [0, 0],
        [1, 2, 0],
    ]
    assert kept(part, ["no uid"]) == [[0]]


@pytest.fixture
def red(tmp_path):
    red_model(tmp_path / "red.onnx")
    return str(tmp_path / "red.onnx")


def test_onnx_score_is_what_the_model_says(red, tmp_path):
    pictures = [sample("k", image=plain(20, 30, colour)) for colour in ("#ff0000", "#800000")]
    options = {"size": 8, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "min": 0.6}
    part = OnnxScore(path=red, **options)
    np.testing.assert_allclose(scored(part, *pictures), [1.0, 128 / 255], atol=1e-6)
    assert kept(part, scored(part, *pictures)) == [[True, False]]
    np.testing.assert_allclose(
        scored(OnnxScore(path=red, column=1, **options), *pictures), [-1.0, -128 / 255], atol=1e-6
    )
    before = part.identity()
    red_model(tmp_path / "one.onnx", shape=(1, "high", "wide", 3))  # one picture, channels last
    one = OnnxScore(path=str(tmp_path / "one.onnx"), **options)
    np.testing.assert_allclose(scored(one, *pictures), [1.0, 128 / 255], atol=1e-6)
    assert one.identity() != before


def test_weights_in_a_file_beside_the_model_are_part_of_its_identity(red, tmp_path):
    onnx = pytest.importorskip("onnx")
    whole = onnx.load(red)
    onnx.external_data_helper.set_external_data(whole.graph.initializer[0], "red.data")
    onnx.save_model(whole, tmp_path / "apart.onnx")
    part = OnnxScore(path=str(tmp_path / "apart.onnx"), size=8, top=0.5)
    before, weights = part.identity(), (tmp_path / "red.data").read_bytes()
    assert scored(part, sample("k"))
    (tmp_path / "red.data").write_bytes(weights[::-1])
    forget()
    assert part.identity() != before
    (tmp_path / "red.data").unlink()
    forget()
    with pytest.raises(UserError, match=r"Cannot read .*red\.data"):
        part.identity()


def test_onnx_score_takes_features_of_a_model(red, model, tmp_path, encoder):
    with pytest.raises(UserError, match=r"red.onnx cannot take an input of 1 x 64") as error:
        scored(OnnxScore(path=red, model=str(model), top=0.5), sample("k"))
    assert "\n" not in str(error.value)
    assert encoder.dim == 64
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"Cannot load the model .*no\.onnx"):
        scored(OnnxScore(path=str(tmp_path / "no.onnx"), top=0.5), sample("k"))
