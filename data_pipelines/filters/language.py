"""Captions in other languages than those that are wanted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.languages import language_identity, language_model
from data_pipelines.curation.rules import Filter
from data_pipelines.curation.table_rows import Rows, Said
from vlp.errors import UserError, nearest

UNKNOWN = "unknown"
MOST_OF_THE_WEB = (
    "ar bg cs da de el en es fa fi fr he hi hu id it ja ko nl no pl pt ro ru sv th tr uk vi zh"
)
"""Languages of it. Among all 140 that the model knows, "Kitchen" is taken for Walloon."""


@dataclass(frozen=True, kw_only=True)
class Language(Filter):
    """Language of the caption, an ISO 639 code, by py3langid; English stays by default.

    A caption is ``unknown`` where the model is not sure: most alt-texts of up to three words are,
    such as names of products. DataComp and LAION keep what fastText or cld3 thinks is most likely
    English, sure or not; ``languages=('en', 'unknown')`` keeps nearly all that they would, and
    some others.
    """

    deciding: ClassVar[tuple[str, ...]] = ("languages",)
    languages: tuple[str, ...] = ("en",)
    """Those that stay; ``unknown`` is one."""
    among: tuple[str, ...] = tuple(MOST_OF_THE_WEB.split())
    """Languages that are told apart."""
    confidence: float = 0.5
    """Probability among these languages below which a caption is ``unknown``, in [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise UserError(f"confidence={self.confidence} is no probability. Give 0 to 1.")
        foreign = sorted(set(self.languages) - set(self.among) - {UNKNOWN})
        if foreign or not self.languages:
            told = foreign[0] if foreign else ""
            raise UserError(
                f"languages={self.languages} can never be found. "
                f"{nearest(told, [*self.among, UNKNOWN])} Others must be in among=(...), too."
            )
        object.__setattr__(self, "among", tuple(sorted(set(self.among))))

    @property
    def is_pointwise(self) -> bool:
        """Whether a sample's fate follows from its own score: it does."""
        return True

    def identity(self) -> str:
        """Return the version of py3langid, whose model comes with it."""
        language_model(self.among)
        return language_identity()

    def score(self, candidates: Sequence[Candidate]) -> list[str]:
        """Return the language of each caption."""
        return self._languages([one.text for one in candidates])

    def score_rows(self, rows: Rows) -> Said:
        """Return the language of each row's caption."""
        return rows.of_captions(self._languages)

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which captions are of the languages that stay."""
        wanted = pa.array(self.languages)
        for column in columns:
            yield np.asarray(pc.is_in(column.values.cast(pa.string()), value_set=wanted))

    def _languages(self, captions: Sequence[str]) -> list[str]:
        languages, probability = language_model(self.among)(captions)
        languages[probability.astype(float) < self.confidence] = UNKNOWN
        return languages.tolist()
