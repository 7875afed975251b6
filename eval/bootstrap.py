"""How sure a figure is: what it would have been on other images of the same kind.

Images are drawn with replacement, each with all its captions; what is searched stays the whole set
(Efron and Tibshirani 1993). The draws follow from the seed and the number of images
alone, so the same draw of two models is of the same images, and their differences are paired.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from eval.result import PerImage, Result

DRAWS = 1000
SEED = 0
LEVEL = 0.95
"""Share of intervals that hold the figure that all such images would give."""
COUNTED = 2**24
"""Counts of images in draws held at once: 128 MB."""


def draw_images(num_images: int, draws: int, seed: int = SEED) -> Iterator[Int64[Tensor, "images"]]:
    """Yield the rows of each draw: as many as there are images, some of them several times."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield torch.randint(num_images, (num_images,), generator=generator)


def replicate(
    result: Result, num_images: int, *, draws: int = DRAWS, seed: int = SEED
) -> dict[str, Float64[Tensor, "draws"]]:
    """Return what each figure is for each draw of the images; NaN where a draw leaves it open."""
    count = num_images if result.num_images is None else result.num_images
    found = _means(result.per_image, count, draws, seed)
    if result.resample is not None and draws:
        others = [result.resample(rows) for rows in draw_images(count, draws, seed)]
        names = dict.fromkeys(name for other in others for name in other)
        for name in names:
            values = [other.get(name, torch.nan) for other in others]
            found.setdefault(name, torch.tensor(values, dtype=torch.float64))
    return {name: found[name] for name in result.figures if name in found}


def interval(
    replicates: Float64[Tensor, "draws"],
    figure: float,
    *,
    num_images: int,
    within: tuple[float, float] = (0.0, 1.0),
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the percentiles of the draws, moved by as much as their mean is off the figure.

    They never leave the range that the figure is ``within``. Where all draws are at an end of it,
    as with no hit among n images, they reach to what n images miss in one of 40 cases: 3.7 / n of a
    range that has another end; a median rank that is 1 in all draws is 1.

    A draw lacks a third of the images: figures such as F1 of rare classes or calibration errors are
    others on fewer images (Efron and Tibshirani 1993). NaN where no draw has it.
    """
    known = replicates[~replicates.isnan()]
    if not len(known):
        return torch.nan, torch.nan
    bounds = torch.quantile(known, torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    low, high = (bounds - known.mean() + figure).clamp(*within).tolist()
    width = within[1] - within[0]
    if low == high and low in within and width < torch.inf:
        missed = width * (1 - ((1 - level) / 2) ** (1 / num_images))
        return (low, low + missed) if low == within[0] else (low - missed, low)
    return low, high


def _means(
    per_image: dict[str, PerImage], num_images: int, draws: int, seed: int
) -> dict[str, Tensor]:
    """Return figures that are means over images for all draws, as products with their counts."""
    if not per_image or not draws:
        return {}
    weights = torch.stack([of.weights.double() for of in per_image.values()], 1)
    values = torch.stack([of.values.double() for of in per_image.values()], 1)
    sums = torch.where(weights > 0, values * weights, 0)  # [images, figures]; NaN is not counted
    parts, counts = [], []
    for rows in draw_images(num_images, draws, seed):
        counts.append(torch.bincount(rows, minlength=num_images).double())
        if len(counts) * num_images >= COUNTED:
            parts.append(_ratio(counts, sums, weights))
            counts = []
    if counts:
        parts.append(_ratio(counts, sums, weights))
    found = torch.cat(parts)  # [draws, figures]
    return {name: found[:, place] for place, name in enumerate(per_image)}


def _ratio(counts: list[Tensor], sums: Tensor, weights: Tensor) -> Tensor:
    drawn = torch.stack(counts)  # [draws, images]
    return (drawn @ sums) / (drawn @ weights)
