"""Pictures that look like another: resized, compressed again, lighter, darker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.duplicates import components, groups, is_at
from data_pipelines.curation.encoded import left_on_disk
from data_pipelines.curation.pdq import BITS, QUALITY, RADIUS, pdq, pdq_identity
from data_pipelines.curation.rules import Cost, Filter
from vlp.errors import UserError

SIDE = 8
"""Pixels of the side of the tiny picture whose colours are compared."""
FORM = np.dtype(
    [
        ("hash", "u1", BITS // 8),
        ("quality", "u1"),
        ("pixels", ">u4"),
        ("colours", "u1", SIDE * SIDE * 3),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PdqDuplicate(Filter):
    """Perceptual hash and colours of the picture; one goes that looks like a larger that stays.

    PDQ (Facebook 2019) describes a picture in 256 bits and sees no colour: flags of three stripes
    are one picture to it. So two are taken for the same where at most ``radius`` bits differ,
    PDQ's usual cut-off, and where their colours correlate: pictures of 8 x 8 pixels, at zero mean
    and unit norm over all channels, which neither brightness nor contrast changes (Torralba et al.
    2008, "80 million tiny images", who compare 32 x 32 like this). Pictures are taken in the order
    of their pixels, the largest first; of equal ones the first in the set. Only samples that
    earlier rules left are compared.
    """

    cost: ClassVar[Cost] = Cost.PICTURE
    needs_picture: ClassVar[bool] = True
    deciding: ClassVar[tuple[str, ...]] = ("radius", "quality", "colour")
    radius: int = RADIUS
    """Bits in which two hashes may differ, 0 to 64."""
    colour: float = 0.95
    """Least correlation of the colours, -1 to 1; -1 leaves them out."""
    quality: int = QUALITY
    """Of the hash, 0 to 100: how much of a gradient there is to describe. Pictures below are not
    compared, and stay."""

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 64:
            raise UserError(f"radius={self.radius} is out of range. Give 0 to 64 bits of 256.")
        if not -1 <= self.colour <= 1:
            raise UserError(f"colour={self.colour} is no correlation. Give -1 to 1.")
        if not 0 <= self.quality <= 100:
            raise UserError(f"quality={self.quality} is out of range. Give 0 to 100.")

    def identity(self) -> str:
        """Return the version of what makes the hashes."""
        return pdq_identity()

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return hash, quality, number of pixels and tiny picture of each."""
        return [_described(one.picture) for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which pictures look like no larger one that stays, or are not compared."""
        from vlp.index import hamming_pairs

        with left_on_disk(columns, lambda width: FORM) as left:
            compared = np.flatnonzero(left.records["quality"] >= self.quality)
            hashes = left.records["hash"][compared]
            pairs = hamming_pairs(hashes, self.radius) if len(hashes) else ()
            stays = np.ones(len(left.records), bool)
            # What is within the radius of another hangs together with it: only that is compared.
            for group in groups(components(len(hashes), pairs)):
                rows = compared[group]
                stays[rows] = ~self._goes(left.records[rows])
        return is_at(columns, left.places[stays])

    def _goes(self, rows: np.ndarray) -> Bool[np.ndarray, "rows"]:
        """Return which of some records look like one of more pixels that stays."""
        hashes = np.ascontiguousarray(rows["hash"]).view(np.uint64)  # [rows, 4]
        colours = _normalised(rows["colours"])
        goes = np.zeros(len(rows), bool)
        waiting = np.argsort(-rows["pixels"].astype(np.int64), kind="stable")
        while len(waiting):
            largest, waiting = waiting[0], waiting[1:]
            bits = np.bitwise_count(hashes[waiting] ^ hashes[largest]).sum(axis=1)
            apart = ((colours[waiting] - colours[largest]) ** 2).sum(axis=1)
            is_alike = (bits <= self.radius) & (1 - apart / 2 >= self.colour)
            goes[waiting[is_alike]] = True
            waiting = waiting[~is_alike]
        return goes


def _described(picture: Image.Image) -> bytes:
    found = pdq(picture)
    row = np.zeros((), FORM)
    row["hash"], row["quality"] = found
    row["pixels"] = picture.width * picture.height
    row["colours"] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)
    return row.tobytes()


def _normalised(colours: UInt8[np.ndarray, "rows n"]) -> Float32[np.ndarray, "rows n"]:
    """Return rows at zero mean and unit norm; those of one grey stay zero, and are alike."""
    rows = colours.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
