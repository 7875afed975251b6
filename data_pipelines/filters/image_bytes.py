"""Picture files that are too small to show anything."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter


@dataclass(frozen=True, kw_only=True)
class ImageBytes(BoundedFilter):
    """Size of the encoded picture in bytes; at least 5,000 by default.

    LAION drops pictures of less than 5 KB (Schuhmann et al. 2021 and 2022).
    """

    min: float | None = 5000

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the size of each file."""
        return [one.num_bytes for one in candidates]
