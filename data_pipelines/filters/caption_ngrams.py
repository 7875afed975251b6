"""Captions with words or pairs of words that are rare in the set, such as file names and codes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_pipelines.captions import caption_key
from data_pipelines.curation.candidates import Candidate, hash64
from data_pipelines.curation.columns import Column, Columns
from data_pipelines.curation.frequency import count_of_rank, counted, without
from data_pipelines.curation.rules import Filter
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CaptionNgrams(Filter):
    """The n-grams of the caption; it falls if one is not of the most frequent of the set.

    ALIGN drops captions with a token outside of the 100 million most frequent unigrams and bigrams
    of the raw set (Jia et al. 2021, section 3). Case makes no difference. Those of all captions are
    counted, also of samples that earlier rules dropped; n-grams as frequent as the last one stay,
    and a set with fewer n-grams loses nothing.
    """

    deciding: ClassVar[tuple[str, ...]] = ("size",)
    size: int = 100_000_000
    """Most frequent n-grams that a caption may be made of."""
    longest: int = 2
    """Words of the longest n-gram."""

    def __post_init__(self) -> None:
        for name in ("size", "longest"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} leaves nothing. Give 1 or more.")

    @property
    def needs_pool(self) -> bool:
        """Whether all captions are counted: yes."""
        return True

    def score(self, candidates: Sequence[Candidate]) -> list[list[int]]:
        """Return 64 bits that follow from each n-gram of each caption, signed."""
        return [[_signed(hash64(ngram)) for ngram in self._ngrams(one.text)] for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which captions are made of frequent n-grams alone."""
        least = count_of_rank((counts for _, counts in counted(columns, _ngrams_of)), self.size)
        parts = counted(columns, _ngrams_of)
        return without(columns, (places[counts < least] for places, counts in parts))

    def _ngrams(self, text: str) -> Iterator[str]:
        words = caption_key(text).split()
        for length in range(1, self.longest + 1):
            for start in range(len(words) - length + 1):
                yield " ".join(words[start : start + length])


def _ngrams_of(column: Column) -> tuple[np.ndarray, np.ndarray]:
    rows, values = column.entries
    return rows, values.view(np.uint64)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
