"""Pictures that show nothing but one colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter, Cost


@dataclass(frozen=True, kw_only=True)
class OneColour(BoundedFilter):
    """Contrast: the difference of the brightest and the darkest pixel in levels, 0 to 255.

    Of the channels red, green and blue it is the largest. A picture of one colour has 0, or a few
    where compression left noise; by default one of less than 16 is dropped. A single pixel of
    another colour is contrast enough. Blank placeholders of the web are such pictures.
    """

    cost: ClassVar[Cost] = Cost.PICTURE
    needs_picture: ClassVar[bool] = True
    min: float | None = 16

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the contrast of each picture."""
        extrema: list[Any] = [one.picture.getextrema() for one in candidates]
        return [max(high - low for low, high in channels) for channels in extrema]
