from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from encoded_support import encoded_set, sample, written
from sklearn.linear_model import LogisticRegression
from tests_support import picture

from data_pipelines.encoded import encode_dataset
from eval.evaluators import linear_probe
from eval.evaluators.linear_probe import LinearProbe, same_classes
from eval.evaluators.zero_shot import ZeroShot
from eval.features import Encode
from eval.open_dataset import open_dataset
from vlp.classifier import Classes
from vlp.errors import UserError

COLOURS = ("red", "green", "blue")


def coloured(count, first=0):
    return [
        sample(first + i, f"a {COLOURS[i % 3]} field", colour=COLOURS[i % 3]) for i in range(count)
    ]


@pytest.fixture
def folders(tmp_path):
    """36 pictures to learn from and 24 others, of one colour each, as CLIP_benchmark lays them."""
    train = written(tmp_path / "set" / "train", coloured(36, first=1000))
    return train, written(tmp_path / "set" / "test", coloured(24))


def probe(**options):
    return LinearProbe(**{"classes": COLOURS, "label": "colour", "shots": (2,), **options})


def test_a_probe_learns_colours_from_all_and_from_few_images(folders, encoder):
    train, test = folders
    encoded = encode_dataset(encoder, test, pooled=True)
    task = probe(seeds=2)
    task.check(test)
    result = task(Encode(encoder), encoded)
    found = {name.removeprefix("linear_probe/"): value for name, value in result.figures.items()}
    assert found["acc@1"] > 0.9  # 1 / 3 is chance
    assert found["mean_per_class_recall"] == pytest.approx(found["acc@1"])  # eight images each
    zero_shot = ZeroShot(classes=COLOURS, label="colour")(Encode(encoder), encoded).figures
    assert found["few_shot/0/acc@1"] == zero_shot["zero_shot/acc@1"]
    assert found["few_shot/2/acc@1"] > found["few_shot/0/acc@1"]
    assert found["training_images"] == len(train)
    for name in ("acc@1", "few_shot/2/acc@1"):
        values = result.per_image[f"linear_probe/{name}"].values
        assert values.mean().item() == pytest.approx(found[name])
    again = result.resample(torch.arange(24))
    expected = found["mean_per_class_recall"]
    assert again["linear_probe/mean_per_class_recall"] == pytest.approx(expected)
    (curve,) = result.parts
    assert [x for x, _ in curve.series["few shots"]] == [0, 2]


def test_the_probe_on_all_images_is_scikit_learns_at_the_strength_it_chose(folders, encoder):
    train, test = (encode_dataset(encoder, of, pooled=True) for of in folders)
    result = probe(shots=())(Encode(encoder), test)
    rows, labels = train.image_pooled.numpy(), [i % 3 for i in range(36)]
    strength = result.figures["linear_probe/strength"]
    theirs = LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-8).fit(rows, labels)
    accuracy = theirs.score(test.image_pooled.numpy(), [i % 3 for i in range(24)])
    assert result.figures["linear_probe/acc@1"] == pytest.approx(accuracy)


def test_the_test_images_have_no_say_in_what_is_chosen(folders, encoder, monkeypatch):
    """Turned upside down, they are all wrong, and the strength stays the same."""
    test = encode_dataset(encoder, folders[1], pooled=True)
    chosen = probe(shots=())(Encode(encoder), test).figures["linear_probe/strength"]
    turned = replace(test, image_pooled=-test.image_pooled)
    found = probe(shots=())(Encode(encoder), turned).figures
    assert found["linear_probe/strength"] == chosen
    assert found["linear_probe/acc@1"] < 0.5


def test_few_shots_begin_with_the_captions_and_a_heavy_hand_keeps_them():
    weights = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(12) % 3
    rows = F.normalize(weights[labels] + 0.1 * torch.randn(12, 8), dim=1)
    part = linear_probe.Part(rows, labels)
    right = linear_probe._on_few(part, part, weights, 20.0, torch.arange(3), torch.arange(3, 12))
    # The captions are perfect already; whatever strength is chosen, they stay so.
    assert right.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": (0,)}, r"shots=\(0,\).*Write shots=\(1, 2, 4, 8, 16\)"),
        ({"seeds": 0}, "seeds=0"),
        ({"classes": "none.txt"}, r"Cannot read none\.txt"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        probe(**options)


def test_fewer_images_than_shots_are_refused_in_one_line(folders, encoder):
    test = encode_dataset(encoder, folders[1], pooled=True)
    with pytest.raises(UserError, match="class 'red' has 12 training images, and 16 shots need 17"):
        probe(shots=(16,))(Encode(encoder), test)


def test_a_class_without_training_images_is_named(tmp_path, encoder):
    train = written(tmp_path / "train", [s for s in coloured(12) if s.metadata["colour"] != "blue"])
    test = encode_dataset(encoder, written(tmp_path / "test", coloured(6)), pooled=True)
    task = probe(train=train.name)
    with pytest.raises(UserError, match="none to learn from, such as 'blue'"):
        task(Encode(encoder), test)


def test_a_class_is_the_same_one_where_the_training_folder_has_others_before_it(tmp_path, encoder):
    for split, names in (("train", ("black", "blue", "red")), ("val", ("blue", "red"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                data = picture(name, noise=i + 9 * (split == "val"))
                (tmp_path / split / name / f"{i}.png").write_bytes(data)
    encoded = encode_dataset(encoder, open_dataset(str(tmp_path / "val")), pooled=True)
    figures = LinearProbe(shots=())(Encode(encoder), encoded).figures
    assert figures["linear_probe/acc@1"] > 0.9
    assert figures["linear_probe/chance"] == 1 / 2
    assert figures["linear_probe/training_images"] == 12  # without the black ones


def test_numbers_that_mean_other_classes_in_training_are_refused(folders):
    train, test = folders
    own, theirs = Classes(names=COLOURS), Classes(names=COLOURS[::-1])
    with pytest.raises(UserError, match=r"has other classes than .* Give one list as classes="):
        same_classes(replace(train, classes=theirs), replace(test, classes=own))


def test_one_image_of_each_class_is_too_few_to_choose_by(tmp_path, encoder):
    train = written(tmp_path / "train", coloured(3, first=100))
    test = encode_dataset(encoder, written(tmp_path / "test", coloured(6)), pooled=True)
    with pytest.raises(UserError, match="needs two: one to choose the strength by"):
        probe(train=train.name, shots=())(Encode(encoder), test)


def test_a_probe_without_training_images_or_with_those_it_is_asked_about_is_refused(folders):
    test = folders[1]
    with pytest.raises(UserError, match="would learn from what it is asked about"):
        probe(train=test.name).check(test)
    with pytest.raises(
        UserError, match=r"no folder .*train\. Write linear_probe\(train='SHARDS'\)"
    ):
        probe().check(replace(test, name="elsewhere/test"))
    with pytest.raises(UserError, match="No sample has the label 'shape'"):
        probe(label="shape").check(test)


def test_embeddings_made_by_hand_need_their_rows_before_the_projection(folders, encoder):
    task = probe(train=folders[0].name)
    with pytest.raises(AssertionError, match="before the projection"):
        task(Encode(encoder), encoded_set(coloured(6), torch.randn(6, 64)))
