"""What an evaluator finds: figures, how they would be on other samples, and what a report draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class PerImage(NamedTuple):
    """A figure as a mean over images: sum of ``values * weights`` over sum of ``weights``."""

    values: Float[Tensor, "images"]
    """Of every image of the set, in its order."""
    weights: Float[Tensor, "images"]
    """How much of the figure hangs on each image, such as its captions; 0: not counted."""


class Estimate(NamedTuple):
    """A figure that is no mean over samples, and how it hangs on each of them.

    To first order, it would be ``value + mean(influence[drawn])`` of other samples (the
    infinitesimal jackknife; Efron 1982). No sample is ever there twice, which a rank or a count of
    neighbours would take for structure.
    """

    value: float
    influence: Float[Tensor, "samples"]
    """By how much it rises for each share of a sample more; the mean is 0."""

    def per_image(self, rows: Int64[Tensor, "samples"], *, num_images: int) -> PerImage:
        """Return it as a mean over the images that the samples are of."""
        return per_image(self.value + self.influence, rows, num_images=num_images)


class Curve(NamedTuple):
    """Lines through points (x, y), such as a prefix curve or a reliability diagram."""

    name: str
    """Unique in the report: the part is found by it."""
    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    x: str
    """What the axis is."""


class Bars(NamedTuple):
    """A value for each name, such as the recall of each class."""

    name: str
    title: str
    values: Mapping[str, float]


class Histogram(NamedTuple):
    """How values are spread, such as similarities of true and of false pairs."""

    name: str
    title: str
    series: Mapping[str, Float[Tensor, "_"]]
    x: str


class Matrix(NamedTuple):
    """Counts by row and column, such as a confusion matrix: true class by predicted class."""

    name: str
    title: str
    values: Float[Tensor, "rows columns"]
    rows: Sequence[str]
    columns: Sequence[str]


class Scatter(NamedTuple):
    """Points in the plane, such as a map of both modalities."""

    name: str
    title: str
    series: Mapping[str, Float[Tensor, "_ 2"]]


class Pictures(NamedTuple):
    """Some images of the set with captions, such as the worst misses."""

    name: str
    title: str
    rows: Sequence[int]
    """Of the encoded set."""
    captions: Sequence[str]


class Table(NamedTuple):
    """Rows of cells, such as the worst confusions."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


Part = Curve | Bars | Histogram | Matrix | Scatter | Pictures | Table


@dataclass(frozen=True)
class Result:
    """What an evaluator returns. Figures that are in neither of the next two get no interval."""

    figures: dict[str, float]
    """By name, such as ``retrieval/image_to_text/recall@1``."""
    per_image: dict[str, PerImage] = field(default_factory=dict)
    """Figures that are means over images, by the same names."""
    resample: Callable[[Int64[Tensor, "drawn"]], dict[str, float]] | None = None
    """Other figures, if the set were these of its images, each as often as it is drawn. What is
    searched or ranked among stays the whole set."""
    parts: tuple[Part, ...] = ()
    """What the report draws."""
    num_images: int | None = None
    """Images that the figures are over, where an evaluator reads others than the set's."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Least and greatest value of figures whose names match a pattern; of all others 0 and 1."""

    def range_of(self, figure: str) -> tuple[float, float]:
        """Return the least and the greatest value that a figure can have."""
        found = (of for pattern, of in self.ranges.items() if fnmatch(figure, pattern))
        return next(found, (0.0, 1.0))


def named(name: str, result: Result) -> Result:
    """Return the result with a name before that of each figure and part, as in ``name/acc@1``."""

    def resample(drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
        assert result.resample is not None
        return {f"{name}/{key}": value for key, value in result.resample(drawn).items()}

    return Result(
        {f"{name}/{key}": value for key, value in result.figures.items()},
        {f"{name}/{key}": value for key, value in result.per_image.items()},
        resample if result.resample is not None else None,
        tuple(part._replace(name=f"{name}/{part.name}") for part in result.parts),
        result.num_images,
        {f"{name}/{pattern}": of for pattern, of in result.ranges.items()},
    )


def mean_of(per_image: PerImage) -> float:
    """Return the figure itself."""
    return ((per_image.values * per_image.weights).sum() / per_image.weights.sum()).item()


def per_image(
    values: Tensor, rows: Int64[Tensor, "values"] | None = None, *, num_images: int
) -> PerImage:
    """Return a mean over values as one over images: each image holds the mean of its values.

    Args:
        values: One for each image, or for each of ``rows``.
        rows: The image that each value belongs to, such as the owner of a caption; an image may
            have several values or none.
        num_images: Images of the set.
    """
    values = values.double()
    if rows is None:
        rows = torch.arange(num_images)
    weights = torch.bincount(rows, minlength=num_images).double()
    sums = torch.zeros(num_images, dtype=torch.float64).index_add_(0, rows, values)
    return PerImage(sums / weights.clamp(min=1), weights)


def places_of(
    drawn: Int64[Tensor, "drawn"], rows: Int64[Tensor, "values"], num_images: int
) -> Int64[Tensor, "_"]:
    """Return where among ``rows`` each drawn image stands; those that do not are left out."""
    place = torch.full((num_images,), -1)
    place[rows] = torch.arange(len(rows))
    return place[drawn][place[drawn] >= 0]
