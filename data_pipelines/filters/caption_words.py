"""Captions with too few or too many words."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter
from data_pipelines.curation.table_rows import Rows, Said


@dataclass(frozen=True, kw_only=True)
class CaptionWords(BoundedFilter):
    """Number of words of the caption, split at white space; at least 3 by default.

    DataComp's basic filter: ``len(text.split()) > 2`` (Gadre et al. 2023). ALIGN keeps 3 to 20
    (Jia et al. 2021). Languages written without spaces need another filter.
    """

    min: float | None = 3

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the number of words of each caption."""
        return _words([one.text for one in candidates])

    def score_rows(self, rows: Rows) -> Said:
        """Return the number of words of each row's caption."""
        return rows.of_captions(_words)


def _words(captions: Sequence[str]) -> list[int]:
    return [len(caption.split()) for caption in captions]
