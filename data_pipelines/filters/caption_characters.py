"""Captions with too few or too many characters."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter
from data_pipelines.curation.table_rows import Rows, Said


@dataclass(frozen=True, kw_only=True)
class CaptionCharacters(BoundedFilter):
    """Number of characters of the caption, white space included; at least 6 by default.

    DataComp's basic filter: ``len(text) > 5`` (Gadre et al. 2023). LAION keeps 5 and more
    (Schuhmann et al. 2022).
    """

    min: float | None = 6

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the number of characters of each caption."""
        return _characters([one.text for one in candidates])

    def score_rows(self, rows: Rows) -> Said:
        """Return the number of characters of each row's caption."""
        return rows.of_captions(_characters)


def _characters(captions: Sequence[str]) -> list[int]:
    return [len(caption) for caption in captions]
