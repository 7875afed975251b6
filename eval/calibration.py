"""How far probabilities can be trusted: calibration errors, proper scores, temperature.

Logits are ``scale * cosine``, plus the bias of a model trained with a sigmoid, which gives every
class a probability of its own; one trained with a softmax shares one among the classes. They are
made for a block of images at a time, so no ``[images, classes]`` matrix is held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from eval.metrics import BLOCK

NUM_BINS = 15
"""Guo et al. 2017, section 4."""
ITERATIONS = 60
"""Newton's steps at most; some ten are enough, and bisection alone would take as many as this."""


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
        for features, labels in zip(
            self.features.split(rows), self.labels.split(rows), strict=True
        ):
            logits = self.scale * (features @ self.weights.T).double()
            yield logits if self.bias is None else logits + self.bias, labels


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
        own = F.one_hot(labels, block.shape[1]).to(block.dtype)  # [block, classes]
        if logits.bias is None:
            log_shares = block.log_softmax(1)
            nll, shares = -(own * log_shares).sum(1), log_shares.exp()
        else:
            nll = F.binary_cross_entropy_with_logits(block, own, reduction="none").sum(1)
            shares = block.sigmoid()
        likeliest = block.argmax(1)  # of probabilities, saturated ones would be equal
        best = shares.gather(1, likeliest[:, None])[:, 0]
        parts.append((best, likeliest == labels, nll, (shares - own).square().sum(1)))
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
    not averaged over batches (Guo et al. 2017, equation 3).
    """
    gaps = (bins.accuracy - bins.confidence).abs().nan_to_num()
    return (gaps * bins.count).sum().item() / bins.count.sum().item()


def maximum_calibration_error(bins: Reliability) -> float:
    """Return the largest |accuracy - confidence| of a bin, in [0, 1] (Guo et al. 2017, equation 5).

    Lower is better. A bin with few images counts like any other.
    """
    return (bins.accuracy - bins.confidence).abs().nan_to_num().max().item()


def fit_temperature(logits: Logits) -> float:
    """Return the temperature that gives the labels the highest likelihood (Guo et al. 2017, 4.2).

    Above 1, the model was too sure. The negative log likelihood is convex in 1 / temperature, so
    its slope has one zero: Newton's method, kept inside a bracket that shrinks at each step. Within
    [0.001, 1000]: where every image is classified right, no temperature is too low.
    """
    low, high, inverse = 1e-3, 1e3, 1.0
    for _ in range(ITERATIONS):
        slope, curvature = _slope_and_curvature(logits, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else low
        # Outside the bracket, halve it on the scale of logarithms.
        step = step if low < step < high else (low * high) ** 0.5
        if abs(step - inverse) < 1e-10 * inverse:
            break
        inverse = step
    return 1 / inverse


def cross_fitted(logits: Logits) -> tuple[Confidence, float]:
    """Return the confidences after fitting a temperature to other images, and that temperature.

    Two halves drawn at random, always the same ones: each is read at the temperature of the other,
    so no image has a say in its own. The temperature is the geometric mean of the two.
    """
    order = torch.randperm(len(logits.labels), generator=torch.Generator().manual_seed(0))
    halves = order.chunk(2)
    if len(halves) < 2:
        return confidence(logits), 1.0
    temperatures = [fit_temperature(logits[half]) for half in halves]
    read = [
        confidence(logits[half], other)
        for half, other in zip(halves, reversed(temperatures), strict=True)
    ]
    back = order.argsort()
    joined = Confidence(*(torch.cat(part)[back] for part in zip(*read, strict=True)))
    return joined, (temperatures[0] * temperatures[1]) ** 0.5


def _slope_and_curvature(logits: Logits, inverse: float) -> tuple[float, float]:
    """Return the first two derivatives of the summed negative log likelihood by 1 / temperature."""
    slope = curvature = 0.0
    for block, labels in logits.blocks():
        own = block.gather(1, labels[:, None]).sum().item()
        if logits.bias is None:
            shares = (inverse * block).softmax(1)
            mean = (shares * block).sum(1)  # [block]
            slope += mean.sum().item() - own
            curvature += ((shares * block.square()).sum(1) - mean.square()).sum().item()
        else:
            shares = (inverse * block).sigmoid()
            slope += (shares * block).sum().item() - own
            curvature += (shares * (1 - shares) * block.square()).sum().item()
    return slope, curvature
