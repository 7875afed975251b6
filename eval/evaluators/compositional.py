"""Does a model read more than a bag of words: a true caption among captions that nearly fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

from data_pipelines.dataset import Dataset, some_samples
from data_pipelines.encoded import EncodedSet
from eval.choices import Item, Margins, captions_of, choose, of_items
from eval.compositional_sets import READERS, ItemSet, items_of_samples, read_item_set
from eval.features import Encode
from eval.pictures import encode_pictures
from eval.result import PerImage, Result, mean_of, named, per_image
from vlp.console import say
from vlp.errors import UserError, nearest

FEW = 12
"""Kinds that have a figure of their own; of more, as ARO's relations, only the mean is one."""


@dataclass(frozen=True, kw_only=True)
class Compositional:
    """Choose the caption that fits a picture (ARO, SugarCrepe, Winoground; our toy pairs).

    A choice is right where the true caption is strictly more similar than every false one: a tie is
    wrong, and ``ties`` is their share. ``accuracy`` is over all choices (micro), with one for each
    kind, and ``macro_accuracy`` their mean; in [0, 1], higher is better. ``text_only`` is the
    accuracy of who does not see the picture but the mean of all: what it is above ``chance``, the
    captions give away. Of two pictures in an item, ``text_score``, ``image_score`` and
    ``group_score`` are Winoground's (Thrush et al. 2022).
    """

    benchmark: str | None = None
    """``sugar_crepe``, ``vg_relation``, ``vg_attribution``, ``order`` (COCO's or Flickr30k's) or
    ``winoground``; None for the evaluated set, whose metadata then hold ``false_captions``."""
    files: str | None = None
    """The file that the benchmark's authors publish, or SugarCrepe's folder of seven."""
    images: str | None = None
    """The folder of its pictures."""
    name: str = "compositional"
    """What the figures' names start with."""

    def __post_init__(self) -> None:
        if self.benchmark is None:
            if self.files or self.images:
                raise UserError(
                    "compositional has files and no benchmark. Write "
                    "compositional(benchmark='sugar_crepe', files=..., images=...)."
                )
        elif self.benchmark not in READERS:
            raise UserError(
                f"compositional knows no benchmark {self.benchmark!r}. "
                f"{nearest(self.benchmark, READERS)}"
            )
        elif not self.files or not self.images:
            raise UserError(
                f"compositional needs the files of {self.benchmark}. Write "
                f"compositional(benchmark={self.benchmark!r}, files='FILE', images='FOLDER')."
            )
        else:
            _ = self._published  # a wrong file ends the command before anything is encoded

    def check(self, dataset: Dataset) -> None:
        """Say what the items are, before the dataset is encoded.

        Raises:
            UserError: There is no benchmark, and the dataset has no false captions.
        """
        if self.benchmark is None:
            items_of_samples(some_samples(dataset))
        else:
            found = self._published
            say(f"{self.name}: {len(found.items)} items on {len(found.pictures)} pictures.")

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return accuracies, ties and what a guess gets."""
        if self.benchmark is None:
            items, families, images = items_of_samples(encoded.samples), {}, encoded.image
        else:
            items, families = self._published.items, self._published.families
            images = encode_pictures(encode, self._published.pictures, self.name)
        texts = encode.texts(captions_of(items))
        choices = Choices(items, choose(images, texts, items), len(images), families)
        blind = choose(images.mean(0).expand_as(images), texts, items)
        means = choices.means() | {"text_only": choices.mean(blind.caption > 0)}
        figures = {name: mean_of(of) for name, of in means.items()}
        figures |= choices.resample(torch.arange(len(images)))
        figures |= {"chance": _chance(items), "items": float(len(items))}
        return named(self.name, Result(figures, means, choices.resample, num_images=len(images)))

    @cached_property
    def _published(self) -> ItemSet:
        """The benchmark's items, read once."""
        assert self.benchmark
        assert self.files
        assert self.images
        return read_item_set(self.benchmark, self.files, self.images)


@dataclass(frozen=True)
class Choices:
    """What was chosen, as means over pictures."""

    items: Sequence[Item]
    margins: Margins
    num_images: int
    families: Mapping[str, Sequence[str]]
    """Kinds whose mean is a figure, by its name."""

    def means(self) -> dict[str, PerImage]:
        """Return the shares of all choices, of each kind where there are few, and of items."""
        right = self.margins.caption > 0
        found = {"accuracy": self.mean(right), "ties": self.mean(self.margins.caption == 0)}
        if 1 < len(self._kinds) <= FEW:
            for number, kind in enumerate(self._kinds):
                rows = (self._kind_of_rows == number).nonzero()[:, 0]
                found[f"{kind}/accuracy"] = self.mean(right, rows)
        has_two = (~self.margins.picture.isnan()).nonzero()[:, 0]
        if len(has_two):
            # An item is right where all of its choices are; each of its pictures counts for half.
            text = of_items(right, self.margins.item)
            image = of_items(~(self.margins.picture <= 0), self.margins.item)
            scores = {"text_score": text, "image_score": image, "group_score": text & image}
            for name, of in scores.items():
                found[name] = self.mean(of[self.margins.item], has_two)
        return found

    def mean(self, values: Tensor, rows: Tensor | None = None) -> PerImage:
        """Return the mean of a value of each choice, or of some, as one over pictures."""
        rows = torch.arange(len(values)) if rows is None else rows
        return per_image(values[rows], self.margins.image[rows], num_images=self.num_images)

    def resample(self, drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
        """Return the means over kinds, if the pictures were these."""
        weights = torch.bincount(drawn, minlength=self.num_images)[self.margins.image].double()
        count = torch.bincount(self._kind_of_rows, weights=weights)
        right = torch.bincount(self._kind_of_rows, weights=weights * (self.margins.caption > 0))
        shares = right / count  # [kinds]; NaN for a kind of which no picture was drawn
        found = {"macro_accuracy": shares.nanmean().item()}
        for family, kinds in self.families.items():
            places = [self._kinds.index(kind) for kind in kinds]
            found[family] = shares[places].nanmean().item()
        return found

    @cached_property
    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(item.kind for item in self.items))

    @cached_property
    def _kind_of_rows(self) -> Tensor:
        place = {kind: number for number, kind in enumerate(self._kinds)}
        return torch.tensor([place[item.kind] for item in self.items])[self.margins.item]


def _chance(items: Sequence[Item]) -> float:
    """Return the accuracy of one choice at random."""
    choices = [1 / len(item.captions) for item in items for _ in item.images]
    return sum(choices) / len(choices)
