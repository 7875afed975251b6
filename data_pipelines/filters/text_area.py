"""Pictures that are full of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.ocr import read_texts, reader_identity
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
        return [self._share(one) for one in candidates]

    def _share(self, one: Candidate) -> float:
        texts = read_texts(one)
        if not texts:
            return 0.0
        covered = Image.new("1", one.picture.size)
        for text in texts:
            ImageDraw.Draw(covered).polygon(text.corners, fill=1)
        return float(np.asarray(covered).mean())
