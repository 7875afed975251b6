"""Pictures that many captions go with, such as logos and placeholders."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.frequency import counted, values_left, without
from data_pipelines.curation.rules import Filter
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CaptionsPerImage(Filter):
    """A hash of the picture's bytes; where more than 1,000 samples have it, all of them fall.

    ALIGN drops pictures with more than 1,000 alt-texts (Jia et al. 2021, section 3). Samples are
    counted that earlier rules left: put it before what drops duplicates.
    """

    deciding: ClassVar[tuple[str, ...]] = ("max",)
    max: int = 1000
    """Samples that may have the same picture."""

    def __post_init__(self) -> None:
        if self.max < 1:
            raise UserError(f"max={self.max} leaves no picture. Give 1 or more.")

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the first 8 bytes of the sha256 of each picture."""
        return [hashlib.sha256(one.image).digest()[:8] for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples have a picture that few have."""
        parts = counted(columns, values_left)
        return without(columns, (places[counts > self.max] for places, counts in parts))
