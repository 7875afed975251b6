"""Captions that many pictures share, such as "image for sale"."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_pipelines.curation.candidates import Candidate, hash64
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.frequency import counted, values_left, without
from data_pipelines.curation.rules import Filter
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CaptionFrequency(Filter):
    """A hash of the caption; where more than 10 samples have it, all of them fall.

    ALIGN drops alt-texts that more than 10 pictures share (Jia et al. 2021, section 3). Captions
    are counted among the samples that earlier rules left, a picture as often as it is there.
    """

    deciding: ClassVar[tuple[str, ...]] = ("max",)
    max: int = 10
    """Samples that may share a caption."""

    def __post_init__(self) -> None:
        if self.max < 1:
            raise UserError(f"max={self.max} leaves no caption. Give 1 or more.")

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return 64 bits that follow from each caption."""
        return [hash64(one.text).to_bytes(8, "little") for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples have a caption that few share."""
        parts = counted(columns, values_left)
        return without(columns, (places[counts > self.max] for places, counts in parts))
