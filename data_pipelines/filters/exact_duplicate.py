"""Samples that repeat an earlier one byte for byte."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.duplicates import is_first
from data_pipelines.curation.rules import Filter
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExactDuplicate(Filter):
    """Half of the sha256 of a sample; of all that are equal, the first stays.

    Only samples that earlier rules left are compared, so the copy that stays is one of them.
    """

    by: str = "image"
    """What is compared: ``image`` (the encoded bytes, whatever the caption), ``caption`` (the text,
    whatever the image) or ``pair`` (both equal)."""

    def __post_init__(self) -> None:
        if self.by not in ("image", "caption", "pair"):
            raise UserError(f"by={self.by!r} is not known. Write 'image', 'caption' or 'pair'.")

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the first 16 bytes of the sha256 of each sample."""
        return [self._digest(one)[:16] for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples are the first of their value."""
        return is_first(columns)

    def _digest(self, one: Candidate) -> bytes:
        if self.by == "image":
            return hashlib.sha256(one.image).digest()
        caption = hashlib.sha256(one.text.encode(errors="surrogatepass")).digest()
        if self.by == "caption":
            return caption
        return hashlib.sha256(hashlib.sha256(one.image).digest() + caption).digest()
