"""Which of some pictures a cue brings to mind: WinoGAViL."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.encoded import EncodedSet
from eval.classification import jaccard_of_labels
from eval.compositional_sets import read_json
from eval.features import Encode
from eval.pictures import Picture, check_pictures, encode_pictures
from eval.result import PerImage, Result, mean_of, named
from vlp.errors import UserError

SMALL, LARGE = (5, 6), (10, 12)
"""Candidates of an instance: two rounds of the game (Bitton et al. 2022, section 2)."""


class Instance(NamedTuple):
    """A cue, and the pictures among which a person found what it goes with."""

    caption: str
    candidates: list[int]
    """Places in the list of pictures."""
    is_associated: list[bool]
    """Of each candidate."""


@dataclass(frozen=True, kw_only=True)
class Associations:
    """Choose the pictures that go with a cue, as many as a person chose (Bitton et al. 2022).

    ``jaccard`` is the overlap of the chosen with the true ones, in [0, 1], higher is better: mean
    over instances, and over those with 5 or 6 and with 10 or 12 candidates. DataComp's main figure
    for WinoGAViL is the first. ``chance`` is what choosing at random gets.
    """

    files: str | None = None
    """JSON or JSON lines with ``cue``, ``candidates`` and ``associations``, as published."""
    images: str | None = None
    """The folder of the pictures; a candidate without an extension is a ``.jpg``."""
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

    @cached_property
    def _published(self) -> tuple[list[Instance], list[Picture]]:
        """The instances and their pictures, read once."""
        assert self.files is not None
        if self.images is None or not Path(self.images).is_dir():
            raise UserError(f"There is no folder of pictures {self.images}. Give it as images=.")
        return _read(Path(self.files), Path(self.images))


def _read(path: Path, folder: Path) -> tuple[list[Instance], list[Picture]]:
    """Return the instances of a file, and each picture that they name once.

    Raises:
        UserError: The file is of another form, or pictures are missing.
    """
    pictures: dict[Picture, int] = {}
    instances = []
    for entry in read_json(path):
        try:
            cue, candidates = entry["cue"], entry["candidates"]
            chosen = [name in entry["associations"] for name in candidates]
        except (KeyError, TypeError):
            raise UserError(
                f"{path} is no file of WinoGAViL: each entry needs cue, candidates and "
                f"associations. Give the one its authors publish."
            ) from None
        if not any(chosen):
            raise UserError(f"{path}: none of the candidates of the cue {cue!r} is associated.")
        files = [folder / (name if Path(name).suffix else f"{name}.jpg") for name in candidates]
        places = [pictures.setdefault(Picture(file), len(pictures)) for file in files]
        instances.append(Instance(_caption(cue), places, chosen))
    if not instances:
        raise UserError(f"{path} holds no instance.")
    check_pictures(list(pictures), path, folder)
    return instances, list(pictures)


def _caption(cue: str) -> str:
    """Return the cue as CLIP was asked about it: with an article (DataComp)."""
    return f"{'An' if cue[:1].lower() in 'aeiou' else 'A'} {cue.lower()}"


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
