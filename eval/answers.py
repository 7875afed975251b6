"""What the answers of a zero-shot classifier come to: figures, how they resample, what is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from eval.calibration import (
    HOTTEST,
    Calibrated,
    Confidence,
    Logits,
    Reliability,
    confidence,
    cross_fitted,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
)
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
from eval.metrics import BLOCK, class_ranks, mean_per_class_recall
from eval.result import Bars, Curve, Matrix, Part, Pictures, Result, Table, per_image, places_of

FEW = 60
"""Classes whose whole confusion matrix is drawn."""
FEWEST = 5
"""Images of a bin of the reliability diagram."""
SHOWN = 24
"""Misses and confusions in the report."""


@dataclass(frozen=True)
class OneLabel:
    """The answers for images that show one class each."""

    logits: Logits
    rows: Int64[Tensor, "images"]
    """Where the images stand in the whole set."""
    num_images: int
    """Of the whole set."""
    names: Sequence[str]
    """Of the classes."""
    groups: Int64[Tensor, "images"] | None = None
    """Of each image, from 0; none: -1."""
    group_names: Sequence[str] = ()

    def result(self) -> Result:
        """Return all figures of these answers."""
        means = {"acc@1": (self._ranks <= 1).double()}
        if len(self.names) >= 5:
            means["acc@5"] = (self._ranks <= 5).double()
        fitted, temperature = self._fitted.confidence, self._fitted.temperature
        means |= {"nll": self._own.nll, "brier": self._own.brier}
        means |= {"fitted_nll": fitted.nll, "fitted_brier": fitted.brier}
        figures = {name: values.mean().item() for name, values in means.items()}
        figures |= self.resample(torch.arange(self.num_images))
        figures |= {"temperature": temperature.value, "chance": 1 / len(self.names)}
        figures["samples"] = float(len(self.rows))
        if len(self.rows) < self.num_images:
            figures["left_out"] = float(self.num_images - len(self.rows))
        per = {
            name: per_image(of, self.rows, num_images=self.num_images) for name, of in means.items()
        }
        if temperature.influence.any():
            per["temperature"] = temperature.per_image(self.rows, num_images=self.num_images)
        ranges = {"*nll": (0, inf), "*brier": (0, inf), "temperature": (1 / HOTTEST, HOTTEST)}
        return Result(figures, per, self.resample, self._parts(), ranges=ranges)

    def resample(self, drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
        """Return the figures that are no means over images, if the set were these of its images."""
        images = places_of(drawn, self.rows, self.num_images)
        if not len(images):
            return {}
        labels, ranks = self.logits.labels[images], self._ranks[images]
        count = count_by_class(labels, self._predicted[images], len(self.names))
        found = {
            "mean_per_class_recall": mean_per_class_recall(ranks, labels),
            "f1": f1_per_class(count).nanmean().item(),
            "jaccard": jaccard_per_class(count).nanmean().item(),
        }
        for k in (1, 5) if self.groups is not None and len(self.names) >= 5 else (1,):
            by_group = self._by_group(images, k)
            known = by_group[~by_group.isnan()]
            if len(known):
                found[f"worst_group_acc@{k}"] = known.min().item()
        for prefix, of in (("", self._own), ("fitted_", self._fitted.confidence)):
            bins = reliability(of.confidence[images], of.correct[images])
            found[f"{prefix}ece"] = expected_calibration_error(bins)
            found[f"{prefix}mce"] = maximum_calibration_error(bins)
        return found

    @cached_property
    def _ranks(self) -> Tensor:
        return class_ranks(self.logits.features, self.logits.weights, self.logits.labels)

    @cached_property
    def _predicted(self) -> Tensor:
        parts = self.logits.features.split(max(1, BLOCK // len(self.names)))
        return torch.cat([(part @ self.logits.weights.T).argmax(1) for part in parts])

    @cached_property
    def _own(self) -> Confidence:
        return confidence(self.logits)

    @cached_property
    def _fitted(self) -> Calibrated:
        return cross_fitted(self.logits)

    def _by_group(self, images: Tensor, k: int = 1) -> Tensor:
        """Return the share of each group whose class is among the k most similar."""
        if self.groups is None:
            return torch.empty(0)
        images = images[self.groups[images] >= 0]
        return accuracy_by_group(self._ranks[images] <= k, self.groups[images])

    def _parts(self) -> tuple[Part, ...]:
        labels, everything = self.logits.labels, torch.arange(len(self.rows))
        count = count_by_class(labels, self._predicted, len(self.names))
        recall = (count.right / count.labelled).tolist()
        bars = {
            name: share for name, share in zip(self.names, recall, strict=True) if share == share
        }
        parts: list[Part] = [
            _diagram(self._own, self._fitted.confidence),
            Bars("recall", "Recall of each class", bars),
            self._confusions(),
            self._pictures("hits", "Surest right answers", True),
            self._pictures("misses", "Surest mistakes", False),
        ]
        if self.groups is not None:
            shares = dict(zip(self.group_names, self._by_group(everything).tolist(), strict=False))
            parts.append(Bars("groups", "Accuracy of each group", shares))
        return tuple(parts)

    def _confusions(self) -> Part:
        """Return the confusion matrix, or the worst confusions where there are many classes."""
        labels, predicted = self.logits.labels, self._predicted
        if len(self.names) <= FEW:
            cells = confusion_matrix(labels, predicted, len(self.names)).double()
            title = "Confusion: rows are true classes, columns predicted ones"
            return Matrix("confusion", title, cells, self.names, self.names)
        wrong = (labels != predicted).nonzero()[:, 0]
        pairs, count = torch.unique(
            torch.stack([labels[wrong], predicted[wrong]], 1), dim=0, return_counts=True
        )
        worst = count.argsort(descending=True, stable=True)[:SHOWN]
        rows = [
            (self.names[pairs[i, 0]], self.names[pairs[i, 1]], int(count[i]))
            for i in worst.tolist()
        ]
        return Table("confusion", "Worst confusions", ("true", "predicted", "images"), rows)

    def _surest(self, is_right: bool) -> list[int]:
        """Return the images that were most surely given their class, or a wrong one."""
        wanted = self._own.correct == is_right
        order = self._own.confidence.where(wanted, -1).argsort(descending=True, stable=True)
        return [i for i in order[:SHOWN].tolist() if wanted[i]]

    def _pictures(self, name: str, title: str, is_right: bool) -> Pictures:
        shown, captions = self._surest(is_right), []
        for i in shown:
            given, label = int(self._predicted[i]), int(self.logits.labels[i])
            truth = "" if is_right else f", is {self.names[label]}"
            captions.append(f"{self.names[given]} {self._own.confidence[i]:.0%}{truth}")
        return Pictures(name, title, self.rows[shown].tolist(), captions)


def several_labels(
    images: Float[Tensor, "images dim"],
    weights: Float[Tensor, "classes dim"],
    labels: Bool[Tensor, "images classes"],
    names: Sequence[str],
) -> Result:
    """Return the figures for images that show several classes, or none."""

    def by_class(drawn: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return a figure of each class, some classes at a time."""
        picked = images[drawn]
        size = max(1, BLOCK // 4 // max(1, len(drawn)))
        return torch.cat(
            [
                of(picked @ weights[part].T, labels[drawn][:, part])
                for part in torch.arange(len(weights)).split(size)
            ]
        )

    def resample(drawn: Tensor) -> dict[str, float]:
        if not labels[drawn].any():
            return {}
        area, points = (
            by_class(drawn, of).nanmean().item()
            for of in (average_precision, average_precision_11_points)
        )
        return {"mean_average_precision": area, "mean_average_precision_11_points": points}

    everything, has_label = torch.arange(len(images)), labels.any(1).nonzero()[:, 0]
    size = max(1, BLOCK // 4 // len(weights))
    overlap = torch.cat(
        [
            jaccard_of_labels(images[part] @ weights.T, labels[part])
            for part in has_label.split(size)
        ]
    )
    figures = {**resample(everything), "jaccard": overlap.mean().item()}
    # A class's average precision under a random order is about its share of the images.
    shares = labels.double().mean(0)
    figures["chance"] = shares[shares > 0].mean().item()
    figures |= {"samples": float(len(images)), "labels": float(labels.sum())}
    precision = by_class(everything, average_precision).tolist()
    bars = {name: of for name, of in zip(names, precision, strict=True) if of == of}
    return Result(
        figures,
        {"jaccard": per_image(overlap, has_label, num_images=len(images))},
        resample,
        (Bars("average_precision", "Average precision of each class", bars),),
    )


def _diagram(own: Confidence, fitted: Confidence) -> Curve:
    """Return the reliability diagram: accuracy by confidence, of bins that say something."""
    series = {"calibrated": [(0.0, 0.0), (1.0, 1.0)]}
    for name, of in (("own probabilities", own), ("after temperature fitting", fitted)):
        series[name] = _points(reliability(of.confidence, of.correct))
    title = f"Accuracy by confidence, of {FEWEST} images or more"
    return Curve("reliability", title, series, "confidence")


def _points(bins: Reliability) -> list[tuple[float, float]]:
    points = torch.stack([bins.confidence, bins.accuracy], 1)[bins.count >= FEWEST]
    return [(x, y) for x, y in points.tolist()]
