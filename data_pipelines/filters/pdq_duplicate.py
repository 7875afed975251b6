"""Pictures that look like another: resized, compressed again, with another border."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.duplicates import best_of, components, is_at, left_bytes
from data_pipelines.curation.pdq import BITS, QUALITY, RADIUS, pdq, pdq_identity
from data_pipelines.curation.rules import Cost, Filter
from vlp.errors import UserError

FORM = np.dtype([("hash", "u1", BITS // 8), ("quality", "u1"), ("pixels", ">u4")])


@dataclass(frozen=True, kw_only=True)
class PdqDuplicate(Filter):
    """Perceptual hash of the picture; of pictures that hang together by small distances one stays.

    PDQ (Facebook 2019) describes a picture in 256 bits. Two are taken for the same where at most
    ``radius`` bits differ, PDQ's usual cut-off, and what is the same as the same is the same, too.
    PDQ sees no colour, so drawings that differ in that alone, such as flags, are the same to it.
    The largest picture stays, in pixels; of equal ones the first. Only samples that earlier rules
    left are compared.
    """

    cost: ClassVar[Cost] = Cost.PICTURE
    needs_picture: ClassVar[bool] = True
    deciding: ClassVar[tuple[str, ...]] = ("radius", "quality")
    radius: int = RADIUS
    """Bits in which two hashes may differ, 0 to 64."""
    quality: int = QUALITY
    """Of the hash, 0 to 100: how much of a gradient there is to describe. Pictures below are not
    compared, and stay."""

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 64:
            raise UserError(f"radius={self.radius} is out of range. Give 0 to 64 bits of 256.")
        if not 0 <= self.quality <= 100:
            raise UserError(f"quality={self.quality} is out of range. Give 0 to 100.")

    def identity(self) -> str:
        """Return the version of what makes the hashes."""
        return pdq_identity()

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the hash, its quality and the number of pixels of each picture."""
        return [_described(one.picture) for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which pictures are the largest of those that look alike, or not compared."""
        from vlp.index import hamming_pairs

        data, places = left_bytes(columns, FORM.itemsize)
        rows = np.ascontiguousarray(data).view(FORM).reshape(-1)
        is_compared = rows["quality"] >= self.quality
        seen = np.flatnonzero(is_compared)
        pairs = hamming_pairs(rows["hash"][seen], self.radius) if len(seen) else ()
        best = best_of(components(len(seen), pairs), rows["pixels"][seen])
        kept = np.concatenate([np.flatnonzero(~is_compared), seen[best]])
        return is_at(columns, places[np.sort(kept)])


def _described(picture: Image.Image) -> bytes:
    found = pdq(picture)
    row = np.zeros((), FORM)
    row["hash"], row["quality"] = found
    row["pixels"] = picture.width * picture.height
    return row.tobytes()
