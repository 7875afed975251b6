import math

import pytest
import torch
import torch.nn.functional as F
from encoded_support import encoded_set, sample
from sklearn import metrics as sklearn

from eval.evaluators.zero_shot import ZeroShot
from eval.features import Encode
from eval.result import mean_of
from vlp.classifier import build_classifier
from vlp.encoder import create_encoder, read_config
from vlp.errors import UserError

NAMES = tuple(f"thing {number}" for number in range(6))
COUNT = 80


def labels():
    """Classes of different sizes; the last has no image."""
    return [min(4, int(math.sqrt(number) / 2)) for number in range(COUNT)]


@pytest.fixture
def weights(encoder):
    return build_classifier(encoder, NAMES, ("{}",))


@pytest.fixture
def encoded(weights):
    """Images near the captions of their classes, in two groups; every tenth has no class."""
    generator = torch.Generator().manual_seed(0)
    near = weights[torch.tensor(labels())]
    spread = weights.std(0).mean()
    image = near + 5 * spread * torch.randn(COUNT, weights.shape[1], generator=generator)
    samples = [
        sample(i, cls=99 if i % 10 == 9 else own, region=["north", "south"][i % 2])
        for i, own in enumerate(labels())
    ]
    return encoded_set(samples, image)


def figures(encoder, encoded, **options):
    found = ZeroShot(classes=NAMES, **options)(Encode(encoder), encoded).figures
    return {name.removeprefix("zero_shot/"): value for name, value in found.items()}


def known(encoded, weights):
    """Return label and logits of each image that has a class."""
    rows = [row for row in range(COUNT) if row % 10 != 9]
    return torch.tensor(labels())[rows], (encoded.image[rows] @ weights.T), rows


def test_figures_of_classes_agree_with_scikit_learn(encoder, encoded, weights):
    found = figures(encoder, encoded)
    own, cosines, _ = known(encoded, weights)
    predicted = cosines.argmax(1)
    present = own.unique().tolist()
    for name, score in (("f1", sklearn.f1_score), ("jaccard", sklearn.jaccard_score)):
        expected = score(own, predicted, labels=present, average="macro", zero_division=0)
        assert found[name] == pytest.approx(expected)
    with pytest.warns(UserWarning, match="not in y_true"):
        expected = sklearn.balanced_accuracy_score(own, predicted)
    assert found["mean_per_class_recall"] == pytest.approx(expected)
    assert found["acc@1"] == pytest.approx(sklearn.accuracy_score(own, predicted))
    assert 0.2 < found["acc@1"] < 1
    assert found["samples"] == 72
    assert found["left_out"] == 8


def test_probabilities_are_at_the_models_own_scale(encoder, encoded, weights):
    found = figures(encoder, encoded)
    own, cosines, _ = known(encoded, weights)
    shares = (encoder.logit_scale.exp() * cosines).softmax(1).double()
    shares /= shares.sum(1, keepdim=True)
    assert found["nll"] == pytest.approx(sklearn.log_loss(own, shares, labels=range(6)), rel=1e-5)
    brier = (shares - F.one_hot(own, 6)).square().sum(1).mean().item()
    assert found["brier"] == pytest.approx(brier, rel=1e-5)
    assert found["fitted_nll"] < found["nll"]
    assert found["temperature"] > 0


def test_a_sigmoid_model_has_a_probability_for_each_class(encoded, weights, encoder):
    torch.manual_seed(0)
    sigmoid = create_encoder(read_config("tiny")).eval().requires_grad_(False)
    sigmoid.set_logits(10.0, -5.0)
    found = figures(sigmoid, encoded)
    own, cosines, _ = known(encoded, weights)
    shares = (10 * cosines - 5).sigmoid()
    truth = F.one_hot(own, 6)
    brier = (shares - truth).square().sum(1).mean().item()
    assert found["brier"] == pytest.approx(brier, rel=1e-5)
    nll = 6 * sklearn.log_loss(truth.flatten(), shares.double().flatten())
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["acc@1"] == figures(encoder, encoded)["acc@1"]


def test_the_worst_group_is_the_one_of_the_lowest_accuracy(encoder, encoded, weights):
    found = figures(encoder, encoded, group="region")
    own, cosines, rows = known(encoded, weights)
    right = (cosines.argmax(1) == own).tolist()
    by_group = [
        [hit for hit, row in zip(right, rows, strict=True) if row % 2 == group] for group in (0, 1)
    ]
    assert found["worst_group_acc@1"] == min(sum(hits) / len(hits) for hits in by_group)
    with pytest.raises(UserError, match=r"No sample has the group 'place'\. Write group="):
        figures(encoder, encoded, group="place")


def test_drawing_every_image_once_gives_the_figures_again(encoder, encoded):
    result = ZeroShot(classes=NAMES, group="region")(Encode(encoder), encoded)
    again = result.resample(torch.arange(COUNT).flip(0))
    again |= {name: mean_of(of) for name, of in result.per_image.items()}
    for name, value in again.items():
        assert value == pytest.approx(result.figures[name]), name
    counted = {"chance", "samples", "left_out"}
    assert {name.removeprefix("zero_shot/") for name in set(result.figures) - set(again)} == counted
    right = [row for row in range(COUNT) if result.per_image["zero_shot/acc@1"].values[row] == 1]
    assert result.resample(torch.tensor([9])) == {}  # it has no class
    only_right = result.resample(torch.tensor(right))
    assert only_right["zero_shot/mean_per_class_recall"] == 1


def test_the_report_draws_reliability_recall_confusion_and_misses(encoder, encoded, weights):
    parts = {part.name: part for part in ZeroShot(classes=NAMES)(Encode(encoder), encoded).parts}
    own, cosines, rows = known(encoded, weights)
    expected = sklearn.confusion_matrix(own, cosines.argmax(1), labels=range(6))
    assert parts["zero_shot/confusion"].values.tolist() == expected.tolist()
    assert "thing 5" not in parts["zero_shot/recall"].values  # it has no image
    wrong = {row for row, hit in zip(rows, cosines.argmax(1) == own, strict=True) if not hit}
    misses = parts["zero_shot/misses"]
    assert set(misses.rows) <= wrong
    assert len(misses.rows) == min(24, len(wrong)) == len(misses.captions)
    assert "own probabilities" in parts["zero_shot/reliability"].series


def test_of_many_classes_only_the_worst_confusions_are_drawn(encoder):
    names = [f"thing {number}" for number in range(70)]
    weights = build_classifier(encoder, names, ("{}",))
    samples = [sample(i, cls=0) for i in range(5)]
    image = weights[[3, 3, 3, 0, 7]]
    result = ZeroShot(classes=names)(Encode(encoder), encoded_set(samples, image))
    (table,) = [part for part in result.parts if part.name == "zero_shot/confusion"]
    assert table.rows == [("thing 0", "thing 3", 3), ("thing 0", "thing 7", 1)]


def test_images_with_several_labels_have_an_average_precision_by_class(encoder, weights):
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(COUNT, 6, generator=generator) < torch.tensor([0.3, 0.3, 0.2, 0.2, 0.5, 0.0])
    image = truth.float() @ weights + 0.3 * torch.randn(
        COUNT, weights.shape[1], generator=generator
    )
    lists = [own.nonzero()[:, 0].tolist() for own in truth]
    samples = [sample(i, cls=own) for i, own in enumerate(lists)]
    encoded = encoded_set(samples, image)
    result = ZeroShot(classes=NAMES)(Encode(encoder), encoded)
    scores = encoded.image @ weights.T
    expected = [sklearn.average_precision_score(truth[:, c], scores[:, c]) for c in range(5)]
    found = result.figures
    assert found["zero_shot/mean_average_precision"] == pytest.approx(sum(expected) / 5)
    assert 0 < found["zero_shot/mean_average_precision_11_points"] <= 1
    assert found["zero_shot/chance"] == pytest.approx(truth[:, :5].double().mean().item())
    assert found["zero_shot/labels"] == truth.sum()
    again = result.resample(torch.arange(COUNT))
    again |= {name: mean_of(of) for name, of in result.per_image.items()}
    for name, value in again.items():
        assert value == pytest.approx(found[name])
    by_name = [sample(i, cls=[NAMES[c] for c in own]) for i, own in enumerate(lists)]
    other = ZeroShot(classes=NAMES)(Encode(encoder), encoded_set(by_name, image)).figures
    assert other == found
