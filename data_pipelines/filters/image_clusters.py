"""Pictures like those of a target set, by clusters of features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.duplicates import is_at
from data_pipelines.curation.encoded import EncodedFilter, Rows, left_on_disk
from vlp.errors import UserError
from vlp.features import model_hash_of, stack

PER_CLUSTER = 128
MOST_CLUSTERS = 100_000


@dataclass(frozen=True, kw_only=True)
class ImageClusters(EncodedFilter):
    """Image feature; samples stay whose cluster is the nearest one of some target picture.

    DataComp's image-based filter (Gadre et al. 2023, section 3.2): spherical k-means of 20 rounds
    over the pool, and pictures of ImageNet-1k for the target. What is clustered here are the
    samples that earlier rules left. Join it with ``clip_score(top=0.3)`` for DataComp-1B.
    """

    deciding: ClassVar[tuple[str, ...]] = ("target", "clusters", "seed")
    target: str
    """Folder that `vlp embed` wrote of the target set, with the same model; ``--only images``
    will do."""
    clusters: int | None = None
    """None: one for each 128 samples, at most 100,000, as for DataComp's small pool."""
    seed: int = 0
    """Draws what k-means begins with."""

    def __post_init__(self) -> None:
        EncodedFilter.__post_init__(self)
        if self.clusters is not None and self.clusters < 1:
            raise UserError(f"clusters={self.clusters}. Give 1 or more.")

    def identity(self) -> str:
        """Return what tells the model or the stored features from others."""
        told = EncodedFilter.identity(self)
        own = model_hash_of(Path(self.features)) if self.features else told
        target = model_hash_of(Path(self.target))
        if own and target and own != target:
            raise UserError(
                f"The features of {self.target} are of another model than "
                f"{self.model or self.features}. Run `vlp embed` again with the same."
            )
        return told

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the image feature of each candidate: fp16, unit length."""
        return [row.tobytes() for row in self.images(candidates).astype("<f2")]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which pictures are in a cluster that a target picture is in, too."""
        with left_on_disk(columns, lambda width: np.dtype([("image", "<f2", width // 2)])) as left:
            order = np.argsort(left.ids, kind="stable")
            is_near = self._is_near(Rows(left.records, "image", order))
        return is_at(columns, np.sort(left.places[order[is_near]]))

    def _is_near(self, rows: Rows) -> Bool[np.ndarray, "rows"]:
        from vlp.index import assign, kmeans

        if not len(rows):
            return np.zeros(0, bool)
        wanted = self.clusters or min(MOST_CLUSTERS, len(rows) // PER_CLUSTER)
        centroids = kmeans(rows, max(1, min(wanted, len(rows))), seed=self.seed)
        target, dim = stack(Path(self.target), "image"), centroids.shape[1]
        if target.dim != dim:
            raise UserError(
                f"The features of {self.target} have {target.dim} numbers, those of the samples "
                f"{dim}. Run `vlp embed` again with the same model."
            )
        near = np.unique(assign(target, centroids)[0])
        return np.isin(assign(rows, centroids)[0], near)
