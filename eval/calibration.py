"""How far probabilities can be trusted: calibration errors, proper scores, temperature.

Logits are ``scale * cosine``, plus the bias of a model trained with a sigmoid, which gives every
class a probability of its own; one trained with a softmax shares one among the classes. They are
made for a block of images at a time, so no ``[images, classes]`` matrix is held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from eval.metrics import BLOCK
from eval.result import Estimate

NUM_BINS = 15
"""Guo et al. 2017."""
ITERATIONS = 60
"""Newton's steps at most; some ten are enough, and bisection alone would take as many as this."""
FEW = 8
"""Of so many images one says about where the best temperature is, before all say exactly."""
HOTTEST = 100.0
"""And 1 / 100 is the coldest temperature."""


@dataclass(frozen=True)
class Logits:
    """What a zero-shot classifier says of images, a block at a time."""

    features: Float[Tensor, "images dim"]
    weights: Float[Tensor, "classes dim"]
    labels: Int64[Tensor, "images"]
    scale: float
    """The model's own, the exponential of ``logit_scale``; not CLIP's 100."""
    bias: float | None = None
    """Of a model trained with a sigmoid."""

    def __getitem__(self, rows: Tensor) -> "Logits":
        """Return the same of some of the images."""
        return Logits(self.features[rows], self.weights, self.labels[rows], self.scale, self.bias)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits ``[block, classes]`` and labels ``[block]``, in double precision."""
        rows = max(1, BLOCK // 4 // len(self.weights))
        if len(self.labels) <= rows:
            yield self._whole, self.labels
            return
        for features, labels in zip(
            self.features.split(rows), self.labels.split(rows), strict=True
        ):
            yield self._of(features), labels

    @cached_property
    def _whole(self) -> Tensor:
        """Kept where one block holds it: a temperature is fitted in some ten passes."""
        return self._of(self.features)

    def _of(self, features: Tensor) -> Tensor:
        logits = self.scale * (features @ self.weights.T).double()
        return logits if self.bias is None else logits + self.bias


class Confidence(NamedTuple):
    """What a classifier's probabilities say of each image, and whether they were right."""

    confidence: Float[Tensor, "images"]
    """Of the likeliest class, in [0, 1]."""
    correct: Bool[Tensor, "images"]
    """Whether it is the image's own."""
    nll: Float[Tensor, "images"]
    """Negative log likelihood in nats, from 0; lower is better. With a softmax, -log of the own
    class's probability; with a sigmoid, the log loss of all classes' yes-or-no answers, summed."""
    brier: Float[Tensor, "images"]
    """Squared distance of the probabilities from the truth, summed over classes, from 0; lower is
    better (Brier 1950). With a softmax it is 2 at most."""


class Reliability(NamedTuple):
    """The bins of a reliability diagram: equal widths of confidence, each open below."""

    count: Int64[Tensor, "bins"]
    confidence: Float[Tensor, "bins"]
    """Mean within the bin; NaN in an empty one."""
    accuracy: Float[Tensor, "bins"]


def confidence(logits: Logits, temperature: float = 1.0) -> Confidence:
    """Return what the probabilities of ``logits / temperature`` say of each image."""
    parts = []
    for block, labels in logits.blocks():
        block = block / temperature
        own = block.gather(1, labels[:, None])[:, 0]
        if logits.bias is None:
            total = block.logsumexp(1)
            nll, shares = total - own, (block - total[:, None]).exp()
        else:
            nll = F.softplus(block, threshold=40).sum(1) - own
            shares = block.sigmoid()
        likeliest = block.argmax(1)  # of probabilities, saturated ones would be equal
        best, truth = (shares.gather(1, of[:, None])[:, 0] for of in (likeliest, labels))
        brier = (torch.linalg.vecdot(shares, shares) - 2 * truth + 1).clamp(min=0)
        parts.append((best, likeliest == labels, nll, brier))
    return Confidence(*(torch.cat(part) for part in zip(*parts, strict=True)))


def reliability(
    confidence: Float[Tensor, "images"], correct: Bool[Tensor, "images"], bins: int = NUM_BINS
) -> Reliability:
    """Return count, mean confidence and accuracy in bins of equal width, ``(low, high]``."""
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    place = torch.bucketize(confidence.double(), edges)  # right-closed: an edge is its bin's last
    count = torch.bincount(place, minlength=bins)
    sums = (
        torch.bincount(place, weights=values.double(), minlength=bins)
        for values in (confidence, correct)
    )
    return Reliability(count, *(of / count for of in sums))


def expected_calibration_error(bins: Reliability) -> float:
    """Return the mean over images of |accuracy - confidence| of their bin, in [0, 1].

    Lower is better; 0 where the accuracy of each bin is its confidence. Over all images at once,
    not averaged over batches (Guo et al. 2017).
    """
    gaps = (bins.accuracy - bins.confidence).abs().nan_to_num()
    return (gaps * bins.count).sum().item() / bins.count.sum().item()


def maximum_calibration_error(bins: Reliability) -> float:
    """Return the largest |accuracy - confidence| of a bin, in [0, 1] (Guo et al. 2017).

    Lower is better. A bin with few images counts like any other.
    """
    return (bins.accuracy - bins.confidence).abs().nan_to_num().max().item()


def fit_temperature(logits: Logits) -> float:
    """Return the temperature that gives the labels the highest likelihood (Guo et al. 2017).

    Above 1, the model was too sure. Within [0.01, 100]; where no temperature is too low, as where
    every image is classified right, there is nothing to fit, and it is 1.
    """
    few = torch.arange(0, len(logits.labels), FEW)
    start = _best_inverse(logits[few], 1.0, precision=1e-2) if len(few) > FEW else 1.0
    inverse = _best_inverse(logits, start, precision=1e-9)
    return 1 / inverse if inverse < HOTTEST else 1.0


class Calibrated(NamedTuple):
    """What probabilities say after a temperature was fitted to other images."""

    confidence: Confidence
    temperature: Estimate


def cross_fitted(logits: Logits) -> Calibrated:
    """Return the confidences after fitting a temperature to other images, and that temperature.

    Two halves drawn at random, always the same ones: each is read at the temperature of the other,
    so no image has a say in its own. The temperature is the geometric mean of the two.
    """
    count = len(logits.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    halves = order.chunk(2)
    influence = torch.zeros(count, dtype=torch.float64)
    if len(halves) < 2:
        return Calibrated(confidence(logits), Estimate(1.0, influence))
    temperatures = [fit_temperature(logits[half]) for half in halves]
    read = [
        confidence(logits[half], other)
        for half, other in zip(halves, reversed(temperatures), strict=True)
    ]
    back = order.argsort()
    joined = Confidence(*(torch.cat(part)[back] for part in zip(*read, strict=True)))
    mean = (temperatures[0] * temperatures[1]) ** 0.5
    for half, own in zip(halves, temperatures, strict=True):
        slope, curvature = _slope_and_curvature(logits[half], 1 / own)
        # Each image pulls the root of the summed slopes by its own slope / curvature.
        if curvature > 0:
            influence[half] = count * mean / 2 * own * (slope - slope.mean()) / curvature
    return Calibrated(joined, Estimate(mean, influence))


def _best_inverse(logits: Logits, start: float, *, precision: float) -> float:
    """Return the 1 / temperature where the slope of the negative log likelihood is 0.

    It is convex in it, so there is one such place at most: Newton's method, kept inside a bracket
    that shrinks at each step. An end of the range where there is none.
    """
    low, high, inverse = 1 / HOTTEST, HOTTEST, start
    for _ in range(ITERATIONS):
        slopes, curvature = _slope_and_curvature(logits, inverse)
        slope = slopes.sum().item()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else low
        # Outside the bracket, halve it on the scale of logarithms.
        step = step if low < step < high else (low * high) ** 0.5
        if abs(step - inverse) < precision * inverse:
            break
        inverse = step
    return high if HOTTEST / inverse < 1 + 1e-6 else inverse


def _slope_and_curvature(logits: Logits, inverse: float) -> tuple[Tensor, float]:
    """Return the negative log likelihood's derivatives by 1 / temperature: of each image the first.

    And of all images together the second.
    """
    slopes, curvature = [], 0.0
    for block, labels in logits.blocks():
        own = block.gather(1, labels[:, None])[:, 0]
        if logits.bias is None:
            weighted = (inverse * block).softmax(1).mul_(block)  # shares times logits
            mean = weighted.sum(1)
            curvature += (torch.linalg.vecdot(weighted, block) - mean.square()).sum().item()
        else:
            shares = (inverse * block).sigmoid()
            mean = torch.linalg.vecdot(shares, block)
            curvature += (shares * (1 - shares) * block.square()).sum().item()
        slopes.append(mean - own)
    return torch.cat(slopes), curvature
