"""The numbers of a classification beyond accuracy: confusion, F1, groups, several labels an image.

Pure functions of tensors, each with its direction and range; scikit-learn agrees with them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def confusion_matrix(
    labels: Int64[Tensor, "images"], predicted: Int64[Tensor, "images"], num_classes: int
) -> Int64[Tensor, "classes classes"]:
    """Return how many images of each class (row) were taken for each class (column)."""
    cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


class ClassCounts(NamedTuple):
    """What F1 and Jaccard are made of, for each class."""

    right: Float[Tensor, "classes"]
    """Images of the class that were taken for it: true positives."""
    labelled: Float[Tensor, "classes"]
    """Images of the class: true positives and false negatives."""
    predicted: Float[Tensor, "classes"]
    """Images taken for it: true positives and false positives."""


def count_by_class(
    labels: Int64[Tensor, "images"], predicted: Int64[Tensor, "images"], num_classes: int
) -> ClassCounts:
    """Return how many images each class has, how many were taken for it, and how many of both."""
    hits = labels[labels == predicted]
    return ClassCounts(
        *(torch.bincount(of, minlength=num_classes).double() for of in (hits, labels, predicted))
    )


def f1_per_class(count: ClassCounts) -> Float[Tensor, "classes"]:
    """Return 2 TP / (2 TP + FP + FN) of each class, in [0, 1]; NaN for a class without images.

    Higher is better. The mean over classes with images is the F1 that WILDS reports for iWildCam
    (Koh et al. 2021), and DataComp with it.
    """
    f1 = 2 * count.right / (count.labelled + count.predicted)
    return torch.where(count.labelled > 0, f1, torch.nan)


def jaccard_per_class(count: ClassCounts) -> Float[Tensor, "classes"]:
    """Return TP / (TP + FP + FN) of each class, in [0, 1]; NaN for a class without images.

    Higher is better; it is F1 / (2 - F1).
    """
    jaccard = count.right / (count.labelled + count.predicted - count.right)
    return torch.where(count.labelled > 0, jaccard, torch.nan)


def accuracy_by_group(
    correct: Bool[Tensor, "images"], groups: Int64[Tensor, "images"]
) -> Float[Tensor, "groups"]:
    """Return the accuracy within each group, in [0, 1]; NaN for a group without images.

    The least of them is the worst-group accuracy of WILDS (Koh et al. 2021), which DataComp takes
    for FMoW. Groups are numbers from 0.
    """
    right = torch.bincount(groups, weights=correct.double())
    return right / torch.bincount(groups)


def average_precision(
    scores: Float[Tensor, "images classes"], labels: Bool[Tensor, "images classes"]
) -> Float[Tensor, "classes"]:
    """Return the area under each class's precision-recall curve, in [0, 1]; higher is better.

    The mean over a class's images of the precision at each one's place in the ranking. Equal
    scores stand at one place, the last of theirs, as in scikit-learn's
    ``average_precision_score``: no order of the images changes it. A class without images is NaN.
    """
    precision, recall_step = _precision_curve(scores, labels)
    found = (precision * recall_step).sum(0)  # [classes]
    return torch.where(labels.any(0), found, torch.nan)


def average_precision_11_points(
    scores: Float[Tensor, "images classes"], labels: Bool[Tensor, "images classes"]
) -> Float[Tensor, "classes"]:
    """Return the mean over recalls 0, 0.1, ..., 1 of the best precision from there on, in [0, 1].

    The official figure of Pascal VOC 2007 (Everingham et al. 2010), and the one that
    CLIP's linear probes report for it. Higher is better; NaN for a class without images.
    """
    precision, recall_step = _precision_curve(scores, labels)
    recall = recall_step.cumsum(0)
    # Rounding must not put a recall of 3 / 10 below the third point.
    reached = [recall >= point / 10 - 1e-9 for point in range(11)]
    best = torch.stack([precision.where(mask, 0).amax(0) for mask in reached])  # [11, classes]
    return torch.where(labels.any(0), best.mean(0), torch.nan)


def jaccard_of_labels(
    scores: Float[Tensor, "images classes"], labels: Bool[Tensor, "images classes"]
) -> Float[Tensor, "images"]:
    """Return the overlap of each image's n labels with its n best classes, in [0, 1].

    What both hold, divided by what either holds; higher is better. WinoGAViL's score, where n is
    the number of associations (Bitton et al. 2022), and DataComp's for it. NaN
    for an image without a label.
    """
    count = labels.sum(1, keepdim=True)  # [images, 1]
    order = scores.argsort(dim=1, descending=True, stable=True)
    best = torch.zeros_like(labels).scatter(
        1, order, torch.arange(labels.shape[1], device=labels.device) < count
    )
    return (best & labels).sum(1).double() / (best | labels).sum(1)


def _precision_curve(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return, best score first, the precision of each class at its place and the recall it adds."""
    ordered, order = scores.sort(dim=0, descending=True)  # [images, classes]
    hits = labels.gather(0, order).double()
    places = torch.arange(1, len(scores) + 1, device=scores.device)[:, None]  # [images, 1]
    precision = hits.cumsum(0) / places
    # Of equal scores all have the precision at the last one.
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    is_last[:-1] = ordered[:-1] != ordered[1:]
    place = torch.arange(len(scores), device=scores.device)[:, None].expand_as(ordered)
    last = place.where(is_last, len(scores) - 1).flip(0).cummin(0).values.flip(0)
    return precision.gather(0, last), hits / hits.sum(0).clamp(min=1)
