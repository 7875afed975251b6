"""Pictures that decode wholly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.rules import Cost, Filter


@dataclass(frozen=True, kw_only=True)
class Decodable(Filter):
    """The number of pixels of a picture that decodes to its end, and so stays.

    What does not is counted under its reason, such as ``image ends early``: as failed, which is
    not the same as dropped. Every filter that looks at pixels asks for the same.
    """

    cost: ClassVar[Cost] = Cost.PICTURE
    needs_picture: ClassVar[bool] = True

    @property
    def is_pointwise(self) -> bool:
        """Whether a sample's fate follows from its own score: it does."""
        return True

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the number of pixels of each picture."""
        return [one.picture.width * one.picture.height for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples have been decoded."""
        return (column.is_scored for column in columns)
