import pytest
import torch
from sklearn import metrics as sklearn

from eval.classification import (
    accuracy_by_group,
    average_precision,
    average_precision_11_points,
    confusion_matrix,
    count_by_class,
    f1_per_class,
    jaccard_of_labels,
    jaccard_per_class,
)


def drawn(seed, images=60, classes=7):
    """Labels and predictions of some of the classes; the last class has no image."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(classes - 1, (images,), generator=generator) for _ in range(2))


def scored(seed, images=50, classes=6):
    """Scores with ties, and several labels an image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(images, classes, generator=generator) < 0.3
    scores = torch.randint(-4, 5, (images, classes), generator=generator) + labels.long()
    return scores.float(), labels


@pytest.mark.parametrize("seed", range(5))
def test_confusion_f1_and_jaccard_agree_with_scikit_learn(seed):
    labels, predicted = drawn(seed)
    confusion = confusion_matrix(labels, predicted, 7)
    expected = sklearn.confusion_matrix(labels, predicted, labels=range(7))
    assert confusion.tolist() == expected.tolist()
    counts = count_by_class(labels, predicted, 7)
    present = labels.unique().tolist()
    for ours, theirs in (
        (f1_per_class(counts), sklearn.f1_score),
        (jaccard_per_class(counts), sklearn.jaccard_score),
    ):
        assert ours[6].isnan()  # no image
        expected = theirs(labels, predicted, labels=present, average=None, zero_division=0)
        assert ours[present].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_agrees_with_scikit_learn_where_scores_are_equal_too(seed):
    scores, labels = scored(seed)
    found = average_precision(scores, labels)
    expected = [
        sklearn.average_precision_score(own, of)
        for own, of in zip(labels.T.numpy(), scores.T.numpy(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(average_precision(scores[order], labels[order]), found)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_at_11_points_equals_a_naive_loop(seed):
    scores, labels = scored(seed)
    for own, of, found in zip(
        labels.T.tolist(),
        scores.T.tolist(),
        average_precision_11_points(scores, labels),
        strict=True,
    ):
        points = []
        for least in sorted(set(of), reverse=True):
            taken = [label for label, score in zip(own, of, strict=True) if score >= least]
            points.append((sum(taken) / sum(own), sum(taken) / len(taken)))
        best = [max(p for r, p in points if r >= point / 10 - 1e-9) for point in range(11)]
        assert found.item() == pytest.approx(sum(best) / 11)


def test_a_ranking_without_a_fault_has_an_average_precision_of_one():
    labels = torch.tensor([[True, False], [True, False], [False, False]])
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.2], [0.1, 0.3]])
    for of in (average_precision, average_precision_11_points):
        found = of(scores, labels)
        assert found[0] == 1
        assert found[1].isnan()  # no image shows it


@pytest.mark.parametrize("seed", range(3))
def test_the_overlap_of_labels_equals_one_of_sets(seed):
    scores, labels = scored(seed)
    naive = []
    for own, of in zip(labels.tolist(), scores.tolist(), strict=True):
        true = {place for place, label in enumerate(own) if label}
        best = set(sorted(range(len(of)), key=lambda place: -of[place])[: len(true)])
        naive.append(len(true & best) / len(true | best) if true else torch.nan)
    assert jaccard_of_labels(scores, labels).tolist() == pytest.approx(naive, nan_ok=True)


def test_accuracy_by_group_counts_each_group_alone():
    correct = torch.tensor([True, False, True, True, False])
    groups = torch.tensor([0, 0, 2, 2, 2])
    found = accuracy_by_group(correct, groups).tolist()
    assert found[0] == 1 / 2
    assert found[1] != found[1]  # no image is of group 1
    assert found[2] == pytest.approx(2 / 3)
