"""Which of some pictures a cue brings to mind: WinoGAViL."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet
from eval.classification import jaccard_of_labels
from eval.features import Encode
from eval.pictures import Picture, encode_pictures, pictures_dataset
from eval.result import PerImage, Result, mean_of, named
from eval.winogavil import Embedded, Instance, read_instances
from vlp.errors import UserError

SMALL, LARGE = (5, 6), (10, 12)
"""Candidates of an instance: two rounds of the game (Bitton et al. 2022)."""


@dataclass(frozen=True, kw_only=True)
class Associations:
    """Choose the pictures that go with a cue, as many as a person chose (Bitton et al. 2022).

    ``jaccard`` is the overlap of the chosen with the true ones, in [0, 1], higher is better: mean
    over instances, and over those with 5 or 6 and with 10 or 12 candidates. DataComp's main figure
    for WinoGAViL is the first. ``chance`` is what choosing at random gets.
    """

    files: str | None = None
    """JSON or JSON lines with ``cue``, ``candidates`` and ``associations``, as published; or
    ``winogavil-test.arrow``, which DataComp's evaluation leaves in ``hf_cache``."""
    images: str | None = None
    """The folder of the pictures, a candidate without an extension is a ``.jpg``; None for
    ``images`` beside the file, or the pictures in it."""
    name: str = "associations"
    """What the figures' names start with."""

    def __post_init__(self) -> None:
        if self.files is not None:
            _ = self._published  # a wrong file ends the command before anything is encoded

    def check(self, dataset: object) -> None:
        """Raise UserError unless there are instances; they are in no dataset."""
        if self.files is None:
            raise UserError(
                "associations needs WinoGAViL's files. Write "
                "associations(files='winogavil.jsonl', images='FOLDER')."
            )

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return the overlap with what people chose."""
        self.check(encoded.dataset)
        instances, pictures = self._published
        images = encode_pictures(encode, pictures, self.name)
        texts = encode.texts([instance.caption for instance in instances])
        scores = torch.tensor(
            [
                _overlap(images[instance.candidates] @ text, instance)
                for instance, text in zip(instances, texts, strict=True)
            ]
        )
        means = {"jaccard": _over_pictures(scores, instances, len(pictures))}
        for sizes in (SMALL, LARGE):
            rows = [i for i, of in enumerate(instances) if len(of.candidates) in sizes]
            if rows:
                some = [instances[row] for row in rows]
                name = f"candidates_{sizes[0]}_{sizes[1]}/jaccard"
                means[name] = _over_pictures(scores[rows], some, len(pictures))
        figures = {name: mean_of(of) for name, of in means.items()}
        figures["chance"] = sum(map(_chance, instances)) / len(instances)
        figures["items"] = float(len(instances))
        return named(self.name, Result(figures, means, num_images=len(pictures)))

    def dataset(self) -> Dataset:
        """Return its own pictures: there is no other set that it is asked about."""
        return pictures_dataset(self._published[1], self.name)

    @cached_property
    def _published(self) -> tuple[list[Instance], list[Picture | Embedded]]:
        """The instances and their pictures, read once."""
        assert self.files is not None
        return read_instances(Path(self.files), Path(self.images) if self.images else None)


def _overlap(similarity: Tensor, instance: Instance) -> float:
    return jaccard_of_labels(similarity[None], torch.tensor([instance.is_associated])).item()


def _over_pictures(scores: Tensor, instances: Sequence[Instance], num_pictures: int) -> PerImage:
    """Return the mean over instances as one over pictures: each counts for its candidates."""
    weights, sums = torch.zeros(2, num_pictures, dtype=torch.float64)
    for score, instance in zip(scores.tolist(), instances, strict=True):
        weights[instance.candidates] += 1 / len(instance.candidates)
        sums[instance.candidates] += score / len(instance.candidates)
    return PerImage(sums / weights.where(weights > 0, 1), weights)


def _chance(instance: Instance) -> float:
    """Return the expected overlap of n candidates drawn from N with the n true ones."""
    count, size = sum(instance.is_associated), len(instance.candidates)
    return sum(
        comb(count, hits)
        * comb(size - count, count - hits)
        / comb(size, count)
        * hits
        / (2 * count - hits)
        for hits in range(count + 1)
    )
