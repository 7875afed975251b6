"""Pictures that show what another shows, by a model's features."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from jaxtyping import Float32, Int64

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns, check_share, cutoff
from data_pipelines.curation.duplicates import is_at
from data_pipelines.curation.rules import Cost, Filter
from data_pipelines.faults import SampleFault
from vlp.errors import UserError
from vlp.features import StoredFeatures, open_features

PER_CLUSTER = 8192
"""Samples of a cluster, on average: the paper has 50,000 clusters of 440 million."""
TILE = 2048
"""Rows and columns of similarities that are in memory at a time, however large a cluster is."""


@dataclass(frozen=True, kw_only=True)
class SemanticDuplicate(Filter):
    """SemDeDup: image feature, and cosine to the caption's; what repeats an earlier picture goes.

    Features are parted into clusters by spherical k-means. In a cluster samples stand in the order
    of their clip score, highest first, then of the set; one goes whose cosine to any before it,
    one that goes included, is above ``1 - epsilon``. So a larger ``epsilon`` drops more (Abbas et
    al. 2023, arXiv:2303.09540, section 3; their order is by distance from the centroid, which they
    find to matter little). Only samples that earlier rules left are compared.
    """

    cost: ClassVar[Cost] = Cost.MODEL
    deciding: ClassVar[tuple[str, ...]] = ("epsilon", "share", "clusters", "seed")
    epsilon: float | None = None
    """In [0, 2). The paper finds a duplicate of half of LAION at 0.03, of 30 % at 0.00095."""
    share: float | None = None
    """Share of what comes to the rule that stays, in (0, 1], in place of epsilon; ties stay. The
    paper keeps 0.5 to 0.7 of LAION."""
    model: str | None = None
    """What encodes: a run, a checkpoint folder, or a model that open_clip knows."""
    features: str | None = None
    """Or a folder that `vlp embed` wrote, where samples are found by key and caption."""
    clusters: int | None = None
    """None: one for ``PER_CLUSTER`` samples, so that small sets are compared wholly."""
    seed: int = 0
    """Draws what k-means learns from."""

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.share is None):
            raise UserError("Write either share=0.5, how many stay, or epsilon=0.03.")
        if (self.model is None) == (self.features is None):
            raise UserError("Write either model='run/' or features='features/'.")
        if self.share is not None:
            check_share(self.share, "share")
        if self.epsilon is not None and not 0 <= self.epsilon < 2:
            raise UserError(f"epsilon={self.epsilon} is out of range. Give 0 to less than 2.")
        if self.clusters is not None and self.clusters < 1:
            raise UserError(f"clusters={self.clusters}. Give 1 or more.")

    @property
    def needs_picture(self) -> bool:  # type: ignore[override]
        """Whether the pictures are encoded now."""
        return self.model is not None

    @property
    def models(self) -> tuple[str, ...]:
        """The model, if any."""
        return (self.model,) if self.model else ()

    def identity(self) -> str:
        """Return the hash of the model, or what tells the stored features from others."""
        if self.features:
            return _stored(self.features).identity
        from data_pipelines.curation.features import model_hash

        return model_hash(self.model or "")

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the clip score (fp32) and the image feature (fp16, unit length) of each."""
        if self.features:
            pairs = np.stack([_found(_stored(self.features), one) for one in candidates])
            image, text = pairs[:, 0], pairs[:, 1]
        else:
            from data_pipelines.curation.features import image_features, text_features

            text = text_features(self.model or "", candidates)
            image = image_features(self.model or "", candidates)
        clip = (image * text).sum(axis=1)  # [candidates]
        rows = zip(clip.astype("<f4"), image.astype("<f2"), strict=True)
        return [score.tobytes() + row.tobytes() for score, row in rows]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which pictures repeat none before them."""
        with tempfile.TemporaryFile() as file:
            rows, places = _written(columns, file)
            nearest = _nearest_before(rows, self._cluster_of(rows))
        if self.share is None:
            limit = 1 - (self.epsilon or 0.0)
        else:
            limit = -cutoff([-nearest.astype(np.float64)], self.share)
        return is_at(columns, places[nearest <= limit])

    def _cluster_of(self, rows: "_Rows") -> Int64[np.ndarray, "rows"]:
        number = min(len(rows), self.clusters or round(len(rows) / PER_CLUSTER))
        if number < 2:
            return np.zeros(len(rows), np.int64)
        from vlp.index import assign, kmeans

        return assign(rows, kmeans(rows, number, seed=self.seed))[0]


class _Rows:
    """Features on the disk, and the clip score of each."""

    def __init__(self, file: BinaryIO, width: int, count: int) -> None:
        form = np.dtype([("clip", "<f4"), ("row", "<f2", (width - 4) // 2)])
        self._data = np.memmap(file, form, "r", shape=(count,)) if count else np.empty(0, form)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, rows: slice | np.ndarray) -> Float32[np.ndarray, "_ dim"]:
        return _unit(self._data["row"][rows].astype(np.float32))

    @property
    def clip(self) -> Float32[np.ndarray, "rows"]:
        """The clip score of each."""
        return np.asarray(self._data["clip"])


def _written(columns: Columns, file: BinaryIO) -> tuple[_Rows, Int64[np.ndarray, "rows"]]:
    """Write down the rows that are left; they may be more than the memory holds."""
    width, places = 4, [np.empty(0, np.int64)]
    for column in columns:
        rows = np.flatnonzero(column.left)
        if len(rows):
            width = column.bytes.shape[1]
            file.write(column.bytes[rows].tobytes())
            places.append(column.first + rows)
    file.flush()
    found = np.concatenate(places)
    return _Rows(file, width, len(found)), found


def _nearest_before(
    rows: _Rows, cluster_of: Int64[np.ndarray, "rows"]
) -> Float32[np.ndarray, "rows"]:
    """Return the largest cosine of each row to one before it in its cluster; -inf for the first."""
    order = np.lexsort((np.arange(len(rows)), -rows.clip, cluster_of))
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


def _found(features: StoredFeatures, one: Candidate) -> Float32[np.ndarray, "2 dim"]:
    row = features.row(one.key, one.text)
    pair = None if row is None else features.pair(row).astype(np.float32)
    if pair is None or not np.isfinite(pair).all() or not pair.any(axis=1).all():
        raise SampleFault("no features of it")
    return _unit(pair)


def _unit(rows: Float32[np.ndarray, "_ dim"]) -> Float32[np.ndarray, "_ dim"]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@lru_cache
def _stored(folder: str) -> StoredFeatures:
    return open_features(Path(folder))
