"""Pictures that show their caption as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar

from data_pipelines.captions import caption_key
from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.ocr import read_texts, reader_identity
from data_pipelines.curation.rules import BoundedFilter, Cost
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextSpotting(BoundedFilter):
    """Most characters in a row that the caption shares with a line of text in the picture.

    The T of CAT (Radenovic et al. 2023, DiHT): a pair falls where text that is read
    with a confidence of at least 0.8 matches the caption in a sliding window of 5 characters. Case
    makes no difference. So at most 4 stay.
    """

    cost: ClassVar[Cost] = Cost.READING
    needs_picture: ClassVar[bool] = True
    max: float | None = 4
    confidence: float = 0.8
    """Least confidence of what is read, in [0.5, 1]."""

    def __post_init__(self) -> None:
        BoundedFilter.__post_init__(self)
        if not 0.5 <= self.confidence <= 1:
            raise UserError(f"confidence={self.confidence} is not in [0.5, 1].")

    def identity(self) -> str:
        """Return the version of the reader."""
        return reader_identity()

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the longest match of each caption, in characters."""
        return [
            max(
                (
                    _longest_match(caption_key(text.text), caption_key(one.text))
                    for text in read_texts(one)
                    if text.confidence >= self.confidence
                ),
                default=0,
            )
            for one in candidates
        ]


def _longest_match(one: str, other: str) -> int:
    return SequenceMatcher(None, one, other, autojunk=False).find_longest_match().size
