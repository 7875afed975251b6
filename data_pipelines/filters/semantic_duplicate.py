"""Pictures that show what another shows, by a model's features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Int64

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns, check_share, cutoff
from data_pipelines.curation.duplicates import is_at
from data_pipelines.curation.encoded import EncodedFilter, Rows, left_on_disk
from vlp.errors import UserError

PER_CLUSTER = 8192
"""Samples of a cluster, on average: the paper has 50,000 clusters of 440 million."""
TILE = 2048
"""Rows and columns of similarities that are in memory at a time, however large a cluster is."""


@dataclass(frozen=True, kw_only=True)
class SemanticDuplicate(EncodedFilter):
    """SemDeDup: image feature, and cosine to the caption's; what repeats an earlier picture goes.

    Features are parted into clusters by spherical k-means. In a cluster samples stand in the order
    of their clip score, highest first, then of the set; one goes whose cosine to any before it,
    one that goes included, is above ``1 - epsilon``. So a larger ``epsilon`` drops more (Abbas et
    al. 2023, arXiv:2303.09540, section 3; their order is by distance from the centroid, which they
    find to matter little). Only samples that earlier rules left are compared.
    """

    deciding: ClassVar[tuple[str, ...]] = ("epsilon", "share", "clusters", "seed")
    epsilon: float | None = None
    """In [0, 2). The paper finds a duplicate of half of LAION at 0.03, of 30 % at 0.00095."""
    share: float | None = None
    """Share of what comes to the rule that stays, in (0, 1], in place of epsilon; ties stay. The
    paper keeps 0.5 to 0.7 of LAION."""
    clusters: int | None = None
    """None: one for ``PER_CLUSTER`` samples, so that small sets are compared wholly."""
    seed: int = 0
    """Draws what k-means learns from."""

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.share is None):
            raise UserError("Write either share=0.5, how many stay, or epsilon=0.03.")
        EncodedFilter.__post_init__(self)
        if self.share is not None:
            check_share(self.share, "share")
        if self.epsilon is not None and not 0 <= self.epsilon < 2:
            raise UserError(f"epsilon={self.epsilon} is out of range. Give 0 to less than 2.")
        if self.clusters is not None and self.clusters < 1:
            raise UserError(f"clusters={self.clusters}. Give 1 or more.")

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the clip score (fp32) and the image feature (fp16, unit length) of each."""
        image, text = self.pairs(candidates)
        clip = (image * text).sum(axis=1)  # [candidates]
        rows = zip(clip.astype("<f4"), image.astype("<f2"), strict=True)
        return [score.tobytes() + row.tobytes() for score, row in rows]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which pictures repeat none before them."""
        with left_on_disk(columns, _form) as left:
            rows = Rows(left.records, "image")
            nearest = _nearest_before(rows, left.records["clip"], self._cluster_of(rows))
        if self.share is None:
            limit = 1 - (self.epsilon or 0.0)
        else:
            limit = -cutoff([-nearest.astype(np.float64)], self.share)
        return is_at(columns, left.places[nearest <= limit])

    def _cluster_of(self, rows: Rows) -> Int64[np.ndarray, "rows"]:
        number = min(len(rows), self.clusters or round(len(rows) / PER_CLUSTER))
        if number < 2:
            return np.zeros(len(rows), np.int64)
        from vlp.index import assign, kmeans

        return assign(rows, kmeans(rows, number, seed=self.seed))[0]


def _form(width: int) -> np.dtype:
    return np.dtype([("clip", "<f4"), ("image", "<f2", (width - 4) // 2)])


def _nearest_before(
    rows: Rows, clip: Float32[np.ndarray, "rows"], cluster_of: Int64[np.ndarray, "rows"]
) -> Float32[np.ndarray, "rows"]:
    """Return the largest cosine of each row to one before it in its cluster; -inf for the first."""
    order = np.lexsort((np.arange(len(rows)), -clip, cluster_of))
    ends = np.flatnonzero(np.diff(cluster_of[order])) + 1
    nearest = np.full(len(rows), -np.inf, np.float32)
    for members in np.split(order, ends):
        for start in range(0, len(members), TILE):
            block = members[start : start + TILE]
            features = rows[block]
            for before in range(0, start + 1, TILE):
                cosines = features @ rows[members[before : before + TILE]].T  # [block, before]
                if before == start:
                    cosines[np.triu_indices(len(block))] = -np.inf
                nearest[block] = np.maximum(nearest[block], cosines.max(axis=1))
    return nearest
