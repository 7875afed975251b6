"""Pictures that an evaluation set holds, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.evaluation_sets import picture_hashes, set_identity
from data_pipelines.curation.pdq import BITS, QUALITY, RADIUS, pdq, pdq_identity
from data_pipelines.curation.rules import BoundedFilter, Cost

TILE = 1 << 22
"""Pairs of hashes that are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class EvaluationImage(BoundedFilter):
    """Fewest bits of PDQ, 0 to 256, between the picture and one of the evaluation set.

    A picture within 31 bits of one is taken for the same, so 32 and more stay. Flat pictures, of
    which PDQ says nothing, are 256 from any. DataComp (Gadre et al. 2023, appendix C) compares
    features of a copy detector instead, cosine below 0.604.
    """

    cost: ClassVar[Cost] = Cost.PICTURE
    needs_picture: ClassVar[bool] = True
    min: float | None = RADIUS + 1
    against: str
    """Evaluation shards."""

    def identity(self) -> str:
        """Return what tells shards and PDQ from others; the hashes are made here, once."""
        picture_hashes(self.against)
        return f"{pdq_identity()} {set_identity(self.against)}"

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the distance of each picture to the nearest of the evaluation set."""
        found = [pdq(one.picture) for one in candidates]
        nearest = nearest_bits(np.stack([one.hash for one in found]), picture_hashes(self.against))
        return [
            int(bits) if one.quality >= QUALITY else BITS
            for bits, one in zip(nearest, found, strict=True)
        ]


def nearest_bits(
    hashes: UInt8[np.ndarray, "hashes 32"], others: UInt8[np.ndarray, "others 32"]
) -> np.ndarray:
    """Return the fewest bits in which each hash differs from one of the others; 256 for none."""
    nearest = np.full(len(hashes), BITS)
    rows = hashes.view(np.uint64)
    for start in range(0, len(others), max(1, TILE // len(hashes))):
        tile = others[start : start + max(1, TILE // len(hashes))].view(np.uint64)
        differing = np.zeros((len(rows), len(tile)), np.int16)
        for part in range(rows.shape[1]):
            differing += np.bitwise_count(rows[:, None, part] ^ tile[None, :, part])
        nearest = np.minimum(nearest, differing.min(axis=1))
    return nearest
