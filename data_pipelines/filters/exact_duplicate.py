"""Samples that repeat an earlier one byte for byte."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.filter import Column
from vlp.errors import UserError
from vlp.types import Sample


@dataclass(frozen=True, kw_only=True)
class ExactDuplicate:
    """The sha256 of a sample; of all that are equal, the first in the order of the shards stays.

    Only samples that earlier rules left are compared, so the copy that stays is one of them.
    """

    by: str = "image"
    """What is compared: ``image`` (the encoded bytes, whatever the caption), ``caption`` (the text,
    whatever the image) or ``pair`` (both equal)."""

    def __post_init__(self) -> None:
        if self.by not in ("image", "caption", "pair"):
            raise UserError(f"by={self.by!r} is not known. Write 'image', 'caption' or 'pair'.")

    def score(self, samples: Sequence[Sample]) -> list[str]:
        """Return the sha256 of each sample in hexadecimal."""
        return [self._digest(sample) for sample in samples]

    def summarise(self, column: Column) -> dict[str, int]:
        """Return the place where each value first stands among the samples that are left."""
        places: dict[str, int] = {}
        for offset in np.flatnonzero(column.left):
            places.setdefault(column.values[offset], column.first + int(offset))
        return places

    def reduce(self, summaries: Iterable[dict[str, int]]) -> dict[str, int]:
        """Return the first place of each value in the whole set."""
        first: dict[str, int] = {}
        for places in summaries:
            for value, place in places.items():
                first[value] = min(place, first.get(value, place))
        return first

    def keep(self, column: Column, reduced: dict[str, int]) -> np.ndarray:
        """Return which samples are the first of their value."""
        places = column.first + np.arange(len(column.values))
        return np.array(
            [reduced.get(v) == place for v, place in zip(column.values, places, strict=True)], bool
        )

    def _digest(self, sample: Sample) -> str:
        image, text = hashlib.sha256(sample.image), hashlib.sha256(sample.text.encode())
        if self.by == "pair":
            return hashlib.sha256(image.digest() + text.digest()).hexdigest()
        return (image if self.by == "image" else text).hexdigest()
