"""Pictures that are too small or too elongated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter
from data_pipelines.curation.table_rows import Rows, Said
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImageSide(BoundedFilter):
    """Shorter side in pixels, read from the header; 0 where the picture is too elongated.

    DataComp's basic filter: shorter side at least 200, aspect at most 3 (Gadre et al. 2023).
    """

    min: float | None = 200
    max_aspect: float = 3.0
    """Longer side divided by the shorter, at most."""

    def __post_init__(self) -> None:
        BoundedFilter.__post_init__(self)
        if self.max_aspect < 1:
            raise UserError(f"max_aspect={self.max_aspect} cannot be met. Give 1 or more.")
        if self.min is None or self.min < 1:
            raise UserError(f"min={self.min} is below 1 pixel. Give 1 or more.")

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the shorter side of each picture, or 0."""
        sizes = np.array([one.size for one in candidates], np.int64)
        return self._sides(sizes.reshape(-1, 2)).tolist()

    def score_rows(self, rows: Rows) -> Said | None:
        """Return the shorter side of each row's picture, or 0."""
        return rows.of_sizes(self._sides)

    def _sides(self, sizes: Int64[np.ndarray, "pictures 2"]) -> Int64[np.ndarray, "pictures"]:
        short, long = sizes.min(axis=1), sizes.max(axis=1)
        return np.where(long <= self.max_aspect * short, short, 0)
