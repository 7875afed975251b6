"""Does a model read more than a bag of words: a true caption among captions that nearly fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data_pipelines.dataset import Dataset, some_samples
from data_pipelines.encoded import EncodedSet
from eval.choices import Item, Margins, captions_of, choose, of_items
from eval.compositional_sets import READERS, ItemSet, items_of_samples, read_item_set
from eval.result import Result, named, per_image
from vlp.console import say
from vlp.encode import encode_images, encode_texts
from vlp.encoder import DualEncoder
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
    ``group_score`` are Winoground's (Thrush et al. 2022, section 4).
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

    def __call__(self, encoder: DualEncoder, encoded: EncodedSet) -> Result:
        """Return accuracies, ties and what a guess gets."""
        if self.benchmark is None:
            items, images, families = items_of_samples(encoded.samples), encoded.image, {}
        else:
            items, pictures, families = _parts(self._published)
            images = encode_images(encoder, (picture.open() for picture in pictures))
        texts = encode_texts(encoder, captions_of(items))
        margins = choose(images, texts, items)
        blind = choose(_mean(images), texts, items)
        found = accuracies(items, margins)
        for family, kinds in families.items():
            found[family] = sum(found[f"{kind}/accuracy"] for kind in kinds) / len(kinds)
        found["ties"] = (margins.caption == 0).double().mean().item()
        found["text_only"] = (blind.caption > 0).double().mean().item()
        found["chance"] = _chance(items)
        found["items"] = float(len(items))
        means = {}
        if self.benchmark is None:  # a benchmark's pictures are not the set's
            right = margins.caption > 0
            means["accuracy"] = per_image(right, margins.image, num_images=len(images))
        return named(self.name, Result(found, means))

    @cached_property
    def _published(self) -> ItemSet:
        """The benchmark's items, read once."""
        assert self.benchmark
        assert self.files
        assert self.images
        return read_item_set(self.benchmark, self.files, self.images)


def accuracies(items: Sequence[Item], margins: Margins) -> dict[str, float]:
    """Return the accuracy of all choices, of each kind where there are few, and of whole items."""
    right = margins.caption > 0
    by_kind: dict[str, list[bool]] = {}
    for item, is_right in zip(margins.item.tolist(), right.tolist(), strict=True):
        by_kind.setdefault(items[item].kind, []).append(is_right)
    shares = {kind: sum(of) / len(of) for kind, of in by_kind.items()}
    found = {"accuracy": right.double().mean().item()}
    found["macro_accuracy"] = sum(shares.values()) / len(shares)
    if 1 < len(shares) <= FEW:
        found |= {f"{kind}/accuracy": share for kind, share in shares.items()}
    has_two = ~margins.picture.isnan()
    if has_two.any():
        found |= _winoground_scores(margins, has_two)
    return found


def _winoground_scores(margins: Margins, has_two: Tensor) -> dict[str, float]:
    """Return the shares of items of two pictures whose captions, pictures or both all fit."""
    item = torch.unique(margins.item[has_two], return_inverse=True)[1]
    text = of_items(margins.caption[has_two] > 0, item)
    image = of_items(margins.picture[has_two] > 0, item)
    scores = {"text_score": text, "image_score": image, "group_score": text & image}
    return {name: of.double().mean().item() for name, of in scores.items()}


def _chance(items: Sequence[Item]) -> float:
    """Return the accuracy of one choice at random."""
    choices = [1 / len(item.captions) for item in items for _ in item.images]
    return sum(choices) / len(choices)


def _mean(images: Tensor) -> Tensor:
    """Return the mean image in place of each."""
    return images.mean(0).expand_as(images)


def _parts(found: ItemSet) -> tuple:
    return found.items, found.pictures, found.families
