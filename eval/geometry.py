"""The shape of an embedding: how images and texts lie in the space they share.

Pure functions of unit-length rows ``x`` (images) and ``y`` (texts). What compares all pairs is
walked in blocks, or exact from sums; formulas and known values stand in each docstring. Figures
that are no means over rows say how they hang on each of them (``Estimate``).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from eval.metrics import similarity_blocks
from eval.probe import fit_probe
from eval.result import Estimate
from vlp.errors import UserError

HEAT = 2.0
"""Wang and Isola's t: the width of the kernel of uniformity is 1 / sqrt(2 t)."""
FLOOR = 1e-7
"""Garrido et al. 2023: added to each share, so that none has the logarithm of 0."""


def alignment(
    image: Float[Tensor, "pairs dim"], text: Float[Tensor, "pairs dim"]
) -> Float[Tensor, "pairs"]:
    """Return the squared distance of each image to its text, in [0, 4]; lower is better.

    2 - 2 cos. Its mean is the alignment of Wang and Isola 2020 (alpha = 2).
    """
    return (image - text).square().sum(1)


def uniformity(rows: Float[Tensor, "rows dim"]) -> Estimate:
    """Return the log of the mean of exp(-2 |x_i - x_j|^2) over pairs i < j, in [-8, 0].

    Lower is better: the more evenly rows lie on the sphere (Wang and Isola 2020,
    t = 2). 0 where all are one point, near -4 for random rows of many dimensions.

    Raises:
        UserError: There are fewer than two rows.
    """
    count = len(rows)
    if count < 2:
        raise UserError("Uniformity compares pairs of rows, and there are fewer than two.")
    # The diagonal is exp(0) = 1 each; the rest holds each pair twice.
    of_rows = (_heat(rows, rows)[0] - 1) / (count - 1)
    return _log_of_mean_over_pairs(2 * of_rows, of_rows.mean())


def cross_uniformity(
    image: Float[Tensor, "pairs dim"], text: Float[Tensor, "pairs dim"]
) -> Estimate:
    """Return the log of the mean of exp(-2 |x_i - y_j|^2) over i != j, in [-8, 0]; lower is better.

    Uniformity across modalities (Fahim et al. 2024, arXiv 2405.18570), as a mean over all N (N - 1)
    pairs.

    Raises:
        UserError: There are fewer than two pairs.
    """
    count = len(image)
    if count < 2:
        raise UserError("Uniformity compares pairs of rows, and there are fewer than two.")
    own = torch.exp(-HEAT * alignment(image.double(), text.double()))
    of_images, of_texts = ((sums - own) / (count - 1) for sums in _heat(image, text))
    return _log_of_mean_over_pairs(of_images + of_texts, of_images.mean().clamp(min=1e-300))


def centroid_gap(image: Float[Tensor, "pairs dim"], text: Float[Tensor, "pairs dim"]) -> Estimate:
    """Return the distance between the mean image and the mean text, in [0, 2].

    The modality gap of Liang et al. 2022, about 0.82 for CLIP on COCO; 0 where both
    modalities have one centre.
    """
    apart = image.double() - text.double()
    gap = apart.mean(0).norm()
    return Estimate(gap.item(), apart @ F.normalize(apart.mean(0), dim=0) - gap)


def linear_separability(
    image: Float[Tensor, "pairs dim"], text: Float[Tensor, "pairs dim"], *, seed: int = 0
) -> Estimate:
    """Return how often a line tells images from texts on held-out pairs, in [0, 1].

    0.5 where the contrastive gap is closed, 1 where the modalities lie apart (Fahim et al. 2024). A
    logistic regression (strength 1) is fitted to one half of the pairs, drawn at random, and asked
    about the other.

    Raises:
        UserError: There are fewer than two pairs.
    """
    if len(image) < 2:
        raise UserError("Linear separability needs pairs to learn from and others; give two pairs.")
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))
    learnt, asked = order.chunk(2)
    rows, labels = _stacked(image[learnt], text[learnt])
    probe = fit_probe(rows, labels, 2, strength=1.0)
    rows, labels = _stacked(image[asked], text[asked])
    right = (probe.logits(rows).argmax(1) == labels).double().reshape(2, -1).mean(0)  # [asked]
    influence = torch.zeros(len(image), dtype=torch.float64, device=image.device)
    influence[asked] = (right - right.mean()) * len(image) / len(asked)
    return Estimate(right.mean().item(), influence)


def rank_me(rows: Float[Tensor, "rows dim"]) -> Estimate:
    """Return the effective rank of the rows, in [1, dim]; higher is better (Garrido et al. 2023).

    The exponential of the entropy of the singular values' shares, each plus 1e-7; the rows are not
    centred. 1 where all rows are one direction; the whole dim for an orthogonal basis. Means
    something from several times as many rows as dimensions on.
    """
    squares, vectors = torch.linalg.eigh(_gram(rows))
    values = squares.clamp(min=0).sqrt()
    shares = values / values.sum() + FLOOR
    rank = torch.exp(-(shares * shares.log()).sum())
    # A row more adds its squared coordinates on the axes to the squares of the singular values.
    is_wide = len(rows) < rows.shape[1]  # then the vectors are of rows
    added = squares * vectors.square() if is_wide else (rows.double() @ vectors).square()
    surprise = shares.log() + 1
    slope = -rank / values.sum() * (surprise - (surprise * values).sum() / values.sum())
    per_value = torch.where(values > values.max() * FLOOR, slope / (2 * values), 0)
    return Estimate(rank.item(), len(rows) * (added @ per_value))


def participation_ratio(rows: Float[Tensor, "rows dim"]) -> Estimate:
    """Return tr(C)^2 / tr(C^2) of the rows' covariance C, in [1, dim]; 0 where all are one point.

    How many directions carry the variance: 1 for a line, dim where all carry the same.
    """
    centred = rows.double() - rows.double().mean(0)
    gram = _gram(centred)
    total, squares = gram.trace(), gram.square().sum()
    ratio = total.square() / squares
    is_wide = len(rows) < rows.shape[1]
    own = gram.square().sum(1) if is_wide else ((centred @ gram) * centred).sum(1)
    influence = 2 * len(rows) * ratio * (centred.square().sum(1) / total - own / squares)
    return Estimate(ratio.nan_to_num().item(), influence.nan_to_num())


def conformity(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows"]:
    """Return each row's mean cosine to all others of its modality, in [-1, 1].

    Low where the content is rare (Levi and Gilboa 2024, arXiv 2411.14517). Exact in one
    pass: (N <x_j, m> - 1) / (N - 1), with m the mean of the rows.

    Raises:
        UserError: There are fewer than two rows.
    """
    count = len(rows)
    if count < 2:
        raise UserError("Conformity compares a row with others, and there are fewer than two.")
    rows = rows.double()
    return (count * (rows @ rows.mean(0)) - rows.square().sum(1)) / (count - 1)


def nearest(
    queries: Float[Tensor, "queries dim"], items: Float[Tensor, "items dim"], k: int = 10
) -> Int64[Tensor, "queries k"]:
    """Return the k nearest items of each query, or all where there are fewer."""
    blocks = similarity_blocks(queries, items)
    return torch.cat([part.topk(min(k, len(items)), dim=1).indices for _, part in blocks])


def hubness(nearest: Int64[Tensor, "pairs k"]) -> Estimate:
    """Return the skewness of N_k, how often each item is among the k nearest of a query.

    0 where every item is found as often (Radovanovic et al. 2010). Lower is better: above 1, a few
    hubs are near to very many queries and crowd out the rest. The i-th query and item are a pair.
    """
    count = torch.bincount(nearest.flatten(), minlength=len(nearest)).double()
    spread = (count - count.mean()).square().mean().sqrt()
    if not spread > 0:
        return Estimate(0.0, torch.zeros_like(count))
    z = (count - count.mean()) / spread
    skew = z.pow(3).mean()
    as_item = z.pow(3) - skew - 3 * z - 1.5 * skew * (z.square() - 1)
    as_query = 3 / spread * (z.square() - 1 - skew * z)[nearest].sum(1)  # finds its k once more
    return Estimate(skew.item(), as_item + as_query)


def dead_dimensions(rows: Float[Tensor, "rows dim"]) -> float:
    """Return the share of dimensions that hardly vary, in [0, 1]; lower is better.

    Those whose standard deviation is below a hundredth of the root mean square over dimensions; all
    of them where the rows are one point.
    """
    spread = rows.double().std(0, unbiased=False)
    floor = spread.square().mean().sqrt() / 100
    return (spread <= floor).double().mean().item()


def margins(
    image: Float[Tensor, "pairs dim"],
    text: Float[Tensor, "pairs dim"],
    group: Int64[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """Return each image's cosine to its text less that to its hardest false one, in [-2, 2].

    Higher is better, above 0 where the image finds its text. Pairs of equal ``group`` match each
    other, so their texts are not false; NaN for an image that has no false text.
    """
    parts = [torch.empty(0, device=image.device)]
    for start, similarity in similarity_blocks(image, text):
        rows = torch.arange(start, start + len(similarity), device=image.device)
        own = similarity[rows - start, rows]
        false = similarity.masked_fill(group[rows, None] == group, -torch.inf).amax(1)
        parts.append(torch.where(false.isfinite(), own - false, torch.nan))
    return torch.cat(parts)


def histogram_distance(
    first: Float[Tensor, "rows"], second: Float[Tensor, "rows"], *, bins: int = 50
) -> Estimate:
    """Return the Jeffreys divergence of two samples' histograms, from 0; 0 where they are alike.

    KL(p, q) + KL(q, p) in nats over equal bins of their common range, a half added to each count.
    With conformities of images and of texts, what Levi and Gilboa 2024 compare modalities by.
    """
    low = min(first.min().item(), second.min().item())
    high = max(first.max().item(), second.max().item(), low + 1e-9)
    counts = [torch.histc(of.double(), bins, low, high) + 0.5 for of in (first, second)]
    p, q = (count / count.sum() for count in counts)
    influence = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for values, own, other in ((first, p, q), (second, q, p)):
        slope = (own / other).log() + 1 - other / own  # [bins]
        place = ((values.double() - low) / (high - low) * bins).long().clamp(max=bins - 1)
        influence += (slope[place] - slope[place].mean()) * len(values) / (len(values) + bins / 2)
    return Estimate(((p - q) * (p.log() - q.log())).sum().item(), influence)


def principal_plane(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows 2"]:
    """Return the rows on the two axes of largest variance, for a map; signs are fixed.

    The largest weight of each axis is positive, so that equal rows give equal maps.
    """
    centred = rows.double() - rows.double().mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)  # [dim, 2]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return centred @ (axes * largest.sign())


def correlation(first: Float[Tensor, "rows"], second: Float[Tensor, "rows"]) -> Estimate:
    """Return Pearson's correlation, in [-1, 1]; 0 where one of them does not vary."""
    x, y = (of.double() - of.double().mean() for of in (first, second))
    product = x.norm() * y.norm()
    if not product > 0:
        return Estimate(0.0, torch.zeros_like(x))
    x, y, r = x / x.norm() * len(x) ** 0.5, y / y.norm() * len(y) ** 0.5, x @ y / product
    return Estimate(r.item(), x * y - r * (x.square() + y.square()) / 2)


def mean_conformity(conformity: Float[Tensor, "rows"]) -> Estimate:
    """Return the mean cosine over all pairs of rows, in [-1, 1], from the conformity of each."""
    mean = conformity.double().mean()
    return Estimate(mean.item(), 2 * (conformity.double() - mean))  # a row is in its pairs twice


def _heat(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of exp(-2 |x_i - y_j|^2) over the second rows, and over the first."""
    by_second = torch.zeros(len(second), dtype=torch.float64, device=second.device)
    by_first = [by_second[:0]]
    for _, similarity in similarity_blocks(first, second):
        # |x - y|^2 = 2 - 2 cos, and rounding must not make it negative.
        heat = torch.exp(-HEAT * (2 - 2 * similarity).clamp(min=0))
        by_first.append(heat.sum(1, dtype=torch.float64))
        by_second += heat.sum(0, dtype=torch.float64)
    return torch.cat(by_first), by_second


def _log_of_mean_over_pairs(of_rows: Tensor, mean: Tensor) -> Estimate:
    """Return the log of a mean over pairs, from twice the mean over those that each row is in."""
    return Estimate(mean.log().item(), (of_rows - 2 * mean) / mean)


def _gram(rows: Tensor) -> Tensor:
    """Return the smaller of x^T x and x x^T: both have the same eigenvalues, but for zeros."""
    rows = rows.double()
    return rows.T @ rows if len(rows) >= rows.shape[1] else rows @ rows.T


def _stacked(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.arange(2, device=image.device).repeat_interleave(len(image))
    return torch.cat([image, text]), labels
