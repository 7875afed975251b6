"""Captions in other languages than those that are wanted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.rules import Filter
from vlp.errors import UserError, nearest, needs

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
        _identifier(self.among)
        return f"py3langid {version('py3langid')}"

    def score(self, candidates: Sequence[Candidate]) -> list[str]:
        """Return the language of each caption."""
        return [self._language(one.text) for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which captions are of the languages that stay."""
        for column in columns:
            yield np.isin(np.array(column.values.to_pylist(), object), self.languages)

    def _language(self, text: str) -> str:
        code, probability = _identifier(self.among).classify(text)
        return code if probability >= self.confidence else UNKNOWN


@lru_cache
def _identifier(among: tuple[str, ...]) -> Any:
    """Return the model, loaded once in a process; it is in the package, and small."""
    with needs("filters", "The language of captions takes py3langid"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    try:
        identifier.set_languages(among)
    except ValueError as error:
        raise UserError(f"among={among}: {error}. Write ISO 639 codes, such as en.") from None
    return identifier
