import json

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from data_pipelines.dataset import Dataset
from eval.prompts import (
    BARE,
    Classes,
    class_of_samples,
    classes_of,
    keep_classes,
    read_classes,
    read_templates,
)
from vlp.classifier import class_captions
from vlp.errors import UserError
from vlp.types import Sample

NESTED = {
    "templates": ["{}", "an emoji of {}"],
    "subgroup": {"classnames": ["cat face", "dog"], "ids": ["cat-face", "dog"], "label_key": "sub"},
    "concept": {
        "label_key": "concept_id",
        "train": [{"concept_id": 7, "name": "cat"}, {"concept_id": 4, "name": "dog"}],
        "test": [{"concept_id": 0, "name": "owl"}],
    },
}


def dataset_beside(*files, **options):
    return Dataset(name="a", keys=[], read=lambda row: None, files=files, identity="", **options)


def sample(**metadata):
    return Sample("key", b"", "a caption", metadata)


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


@pytest.fixture
def nested(tmp_path):
    return write(tmp_path / "classes.json", NESTED)


def test_names_come_from_lines_a_list_or_a_dictionary(tmp_path):
    names = ("tabby cat", "dog")
    assert read_classes(write(tmp_path / "a.txt", "tabby cat\n dog \n")).names == names
    assert read_classes(write(tmp_path / "a.json", list(names))).names == names
    whole = {"classnames": names, "templates": ["a {}"], "ids": [5, 9], "label_key": "y"}
    expected = Classes(names=names, templates=("a {}",), ids=(5, 9), label_key="y")
    assert read_classes(write(tmp_path / "b.json", whole)) == expected
    one = write(tmp_path / "c.json", {"classnames": names, "templates": "one {}"})
    assert read_classes(one).templates == ("one {}",)
    assert read_classes(["tabby cat", "dog"]).templates == BARE


def test_a_part_inherits_templates_and_label_key(nested):
    subgroup = read_classes(nested, part="subgroup")
    assert subgroup.ids == ("cat-face", "dog")
    assert subgroup.label_key == "sub"
    assert subgroup.templates == ("{}", "an emoji of {}")
    train = read_classes(nested, part="concept.train")
    assert (train.names, train.ids) == (("cat", "dog"), (7, 4))
    assert train.label_key == "concept_id"


def test_a_missing_or_unknown_part_is_told_what_there_is(nested):
    with pytest.raises(UserError, match=r"part=: subgroup, concept\.train, concept\.test"):
        read_classes(nested)
    with pytest.raises(UserError, match=r"no part 'concept.tran'. Did you mean concept\.train"):
        read_classes(nested, part="concept.tran")
    with pytest.raises(UserError, match="no part 'templates'"):
        read_classes(nested, part="templates")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("none.txt", None, "Cannot read"),
        ("a.txt", " \n", "is empty"),
        ("a.txt", "cat\n\ndog", "Class 2 of 3 is ''"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "{}", "holds no class names"),
        ("a.json", '{"classnames": 3}', "holds no class names"),
        ("a.json", '[{"name": "cat"}]', "needs 'name' and the label_key, 'cls'"),
        ("a.json", '{"classnames": ["a"], "ids": [1, 2]}', "1 class names and 2 ids"),
        ("a.json", '{"classnames": ["a", "b"], "ids": [1, 1]}', "'1' stands twice"),
        ("a.json", '{"classnames": ["a"], "templates": ["a photo"]}', "'a photo' has no place"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, file, content, message):
    if content is not None:
        write(tmp_path / file, content)
    with pytest.raises(UserError, match=message):
        read_classes(str(tmp_path / file))


def test_templates_come_from_a_file_or_as_given(tmp_path):
    assert read_templates(write(tmp_path / "t.txt", "a {c}\n\nthe {}\n")) == ("a {c}", "the {}")
    assert read_templates(write(tmp_path / "t.json", ["a {}"])) == ("a {}",)
    assert read_templates("a photo of a {}.") == ("a photo of a {}.",)
    with pytest.raises(UserError, match="no list of templates"):
        read_templates(write(tmp_path / "d.json", {"a": 1}))


def test_files_beside_the_shards_or_above_are_found(tmp_path):
    def beside() -> Classes:
        return classes_of(dataset_beside(tmp_path / "test" / "0.tar"))

    with pytest.raises(UserError, match=r"no classnames\.txt in a or above it"):
        beside()
    write(tmp_path / "classnames.txt", "cat\ndog\n")
    assert beside() == Classes(names=("cat", "dog"))
    write(tmp_path / "zeroshot_classification_templates.txt", "a {c}\n")
    assert beside().templates == ("a {c}",)


def test_a_label_is_an_id_a_name_or_a_place():
    names = ("cat", "dog")
    by_number = Classes(names=names, ids=(7, 0), label_key="y")
    # The number 1 is the second place, but with ids that are numbers it is no id.
    assert class_of_samples(by_number, [sample(y=7), sample(y=1), sample(y="0")]) == [0, -1, 1]
    by_word = Classes(names=names, ids=("c1", "d1"), label_key="y")
    assert class_of_samples(by_word, [sample(y="d1"), sample(y=0), sample(y="dog")]) == [1, 0, 1]
    plain = Classes(names=names)
    assert class_of_samples(plain, [sample(cls=1), sample(cls="cat"), sample()]) == [1, 0, -1]
    assert class_of_samples(plain, [sample(cls=0), sample(cls=2), sample(cls=[0, 1])]) == [
        0,
        -1,
        -1,
    ]


def test_a_class_may_be_called_by_a_number():
    digits = Classes(names=("9", "3"))
    assert class_of_samples(digits, [sample(cls="3"), sample(cls=0)]) == [1, 0]


def test_labels_that_are_no_class_show_one_and_the_classes():
    classes = Classes(names=("cat", "dog"), ids=(5, 6), label_key="y")
    with pytest.raises(UserError, match=r"y = 'owl', and the 2 classes are 5, 6\."):
        class_of_samples(classes, [sample(y="owl")])
    with pytest.raises(UserError, match=r"No sample has the label 'y'.* first are: z, text"):
        class_of_samples(classes, [sample(z=1, text=2)])


def test_names_that_stand_twice_are_no_labels():
    classes = Classes(names=("crane", "crane"))
    assert class_of_samples(classes, [sample(cls=1)]) == [1]
    with pytest.raises(UserError, match="'crane' stands twice"):
        class_of_samples(classes, [sample(cls="crane")])


def test_imagenets_templates_have_a_name_and_are_open_clips():
    assert read_templates("imagenet") == tuple(t("{}") for t in OPENAI_IMAGENET_TEMPLATES)
    assert read_templates("imagenet_simple") == tuple(t("{}") for t in SIMPLE_IMAGENET_TEMPLATES)
    assert read_templates("a photo of a {}") == ("a photo of a {}",)


def test_each_class_may_have_captions_of_its_own(tmp_path):
    path = write(tmp_path / "cupl.json", {"cat": ["A cat purrs.", "A pet."], "dog": ["It barks."]})
    own = read_templates(path)
    assert own == {"cat": ("A cat purrs.", "A pet."), "dog": ("It barks.",)}
    assert class_captions("cat", own) == ["A cat purrs.", "A pet."]
    assert Classes(names=("cat", "dog"), templates=own).templates == own
    with pytest.raises(UserError, match=r"class 'owl' has no caption"):
        Classes(names=("cat", "owl"), templates=own)
    for wrong in ({"cat": "A cat purrs."}, {"cat": [3]}):
        with pytest.raises(UserError, match=r"no list of templates.*dictionary"):
            read_templates(write(tmp_path / "wrong.json", wrong))


@pytest.mark.parametrize(
    "subset", [["n2", "n0"], ["owl", "cat"], [True, False, True], "kept.txt", "kept.json"]
)
def test_a_subset_of_classes_keeps_what_labels_mean(subset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "kept.txt", "n2\nn0\n")
    write(tmp_path / "kept.json", ["n2", "n0"])
    classes = Classes(names=("cat", "dog", "owl"), ids=("n0", "n1", "n2"))
    kept = keep_classes(classes, subset)
    assert dict(zip(kept.names, kept.ids, strict=True)) == {"cat": "n0", "owl": "n2"}
    by_place = keep_classes(Classes(names=("cat", "dog", "owl")), [2, 0])
    assert class_of_samples(by_place, [sample(cls=2), sample(cls=0), sample(cls=1)]) == [0, 1, -1]


def test_a_subset_that_is_of_other_classes_is_refused():
    classes = Classes(names=("cat", "dog"))
    with pytest.raises(UserError, match=r"subset= has 'owl', and the classes are 'cat', 'dog'"):
        keep_classes(classes, ["owl"])
    with pytest.raises(UserError, match="3 entries for 2 classes"):
        keep_classes(classes, [True, False, True])
