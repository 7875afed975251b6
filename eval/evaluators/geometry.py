"""How images and texts lie in the space they share, without any task."""

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Int64
from torch import Tensor

from data_pipelines.captions import caption_key
from data_pipelines.dataset import Dataset, some_samples
from data_pipelines.encoded import EncodedSet
from eval import geometry
from eval.features import Encode
from eval.result import (
    Estimate,
    Histogram,
    Part,
    Pictures,
    Result,
    Scatter,
    mean_of,
    named,
    per_image,
)
from vlp.errors import UserError
from vlp.types import Sample

SHOWN = 24
"""Rare images in the report."""
MAPPED = 2000
"""Pairs on the map of both modalities."""
RANGES = {
    "alignment": (0.0, 4.0),
    "*uniformity": (-8.0, 0.0),
    "centroid_gap": (0.0, 2.0),
    "margin": (-2.0, 2.0),
    "*/conformity": (-1.0, 1.0),
    "conformity_correlation": (-1.0, 1.0),
    "conformity_distance": (0.0, inf),
    "*/rank_me*": (1.0, inf),
    "*/participation": (0.0, inf),
    "*/hubness": (-inf, inf),
}
"""Of the figures that are not in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Describe the space: what a fault of it would show as, before a task does.

    For each modality ``uniformity``, ``rank_me`` (also before the projection), ``participation``,
    ``conformity``, ``hubness`` (of what is found) and ``dead_dimensions``; across them
    ``alignment``, ``cross_uniformity``, the contrastive gap (``centroid_gap``,
    ``linear_separability``), ``margin``, and how conformities of images and texts differ. Each
    figure's range and direction stand in its function in ``eval/geometry.py``.
    """

    at_most: int = 20_000
    """Pairs looked at, evenly spaced over the set: uniformity and hubness compare all with all."""
    k: int = 10
    """Neighbours of hubness."""
    name: str = "geometry"
    """What the figures' names start with."""

    needs_pooled = True

    def __post_init__(self) -> None:
        if self.at_most < 2 or self.k < 1:
            raise UserError(
                f"geometry takes at_most from 2 and k from 1, got at_most={self.at_most}, "
                f"k={self.k}."
            )

    def check(self, dataset: Dataset) -> None:
        """Look for captions, before the dataset is encoded."""
        self._rows(some_samples(dataset))

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return the figures, of every modality and across."""
        rows = self._rows(encoded.samples)
        image, text = encoded.image[rows], encoded.text[rows]
        by_image, by_text = geometry.conformity(image), geometry.conformity(text)
        group = _groups([encoded.samples[row] for row in rows.tolist()])
        means = {
            "alignment": geometry.alignment(image, text),
            "margin": geometry.margins(image, text, group),
        }
        estimates = _across(image, text, by_image, by_text)
        figures = {"scale": encode.encoder.logit_scale.exp().item(), "pairs": float(len(rows))}
        for way, of, others, pooled, conformity in (
            ("image", image, text, encoded.image_pooled, by_image),
            ("text", text, image, encoded.text_pooled, by_text),
        ):
            found = _of_one(of) | {"conformity": geometry.mean_conformity(conformity)}
            found["hubness"] = geometry.hubness(geometry.nearest(others, of, self.k))
            if pooled is not None:
                found["rank_me_pooled"] = geometry.rank_me(pooled[rows])
            estimates |= {f"{way}/{name}": estimate for name, estimate in found.items()}
            figures[f"{way}/dead_dimensions"] = geometry.dead_dimensions(of)
        count = len(encoded.samples)
        per = {name: of.per_image(rows, num_images=count) for name, of in estimates.items()}
        for name, values in means.items():
            known = ~values.isnan()
            if known.any():
                per[name] = per_image(values[known], rows[known], num_images=count)
        figures = {name: mean_of(of) for name, of in per.items()} | figures
        parts = _parts(image, text, rows, by_image, by_text)
        return named(self.name, Result(figures, per, parts=parts, ranges=RANGES))

    def _rows(self, samples: list[Sample]) -> Int64[Tensor, "pairs"]:
        """Return the rows that are looked at: samples with a caption, evenly spaced."""
        rows = torch.tensor([row for row, sample in enumerate(samples) if sample.text.strip()])
        if len(rows) < 2:
            raise UserError(
                f"geometry compares pairs, and {len(rows)} samples have a caption. Give captions."
            )
        if len(rows) <= self.at_most:
            return rows.long()
        return rows[torch.linspace(0, len(rows) - 1, self.at_most).round().long()]


def _of_one(features: Tensor) -> dict[str, Estimate]:
    return {
        "uniformity": geometry.uniformity(features),
        "rank_me": geometry.rank_me(features),
        "participation": geometry.participation_ratio(features),
    }


def _across(image: Tensor, text: Tensor, by_image: Tensor, by_text: Tensor) -> dict[str, Estimate]:
    return {
        "cross_uniformity": geometry.cross_uniformity(image, text),
        "centroid_gap": geometry.centroid_gap(image, text),
        "linear_separability": geometry.linear_separability(image, text),
        "conformity_distance": geometry.histogram_distance(by_image, by_text),
        "conformity_correlation": geometry.correlation(by_image, by_text),
    }


def _groups(samples: list[Sample]) -> Int64[Tensor, "pairs"]:
    """Return a number for each sample, equal for equal captions."""
    number: dict[str, int] = {}
    keys = [caption_key(sample.text) for sample in samples]
    return torch.tensor([number.setdefault(key, len(number)) for key in keys])


def _parts(
    image: Tensor, text: Tensor, rows: Tensor, by_image: Tensor, by_text: Tensor
) -> tuple[Part, ...]:
    some = torch.linspace(0, len(rows) - 1, min(MAPPED, len(rows))).round().long()
    both = geometry.principal_plane(torch.cat([image[some], text[some]]))
    rare = by_image.argsort()[:SHOWN]
    captions = [f"conformity {value:.3f}" for value in by_image[rare].tolist()]
    return (
        Scatter(
            "map",
            "Both modalities on their first two principal axes",
            {"images": both[: len(some)], "texts": both[len(some) :]},
        ),
        Histogram(
            "conformity",
            "Mean cosine to the others of the modality",
            {"images": by_image, "texts": by_text},
            "conformity",
        ),
        Pictures("rare", "Images least like the others", rows[rare].tolist(), captions),
    )
