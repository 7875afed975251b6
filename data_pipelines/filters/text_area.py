"""Pictures that are full of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.ocr import reader_identity, text_mask
from data_pipelines.curation.rules import BoundedFilter, Cost


@dataclass(frozen=True, kw_only=True)
class TextArea(BoundedFilter):
    """Share of the picture that lines of text cover, in [0, 1]; 0 by default.

    CLIP-Parrot-Bias drops every picture in which text is found (Lin et al. 2024).
    """

    cost: ClassVar[Cost] = Cost.READING
    needs_picture: ClassVar[bool] = True
    max: float | None = 0.0

    def identity(self) -> str:
        """Return the version of the reader."""
        return reader_identity()

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the share of each picture that is text."""
        return [float(text_mask(one).mean()) for one in candidates]
