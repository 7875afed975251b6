"""Filters that look at features, and the features of a set on the disk while it is decided on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from data_pipelines.curation.candidates import Candidate, hash64
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.files import read_once
from data_pipelines.curation.rules import Cost, Filter
from data_pipelines.faults import SampleFault
from vlp.errors import UserError
from vlp.features import StoredFeatures, open_features


@dataclass(frozen=True, kw_only=True)
class EncodedFilter(Filter):
    """A filter that looks at features, made now by a model or made before."""

    cost: ClassVar[Cost] = Cost.MODEL
    model: str | None = None
    """What encodes: a run, a checkpoint folder, or a model that open_clip knows."""
    features: str | None = None
    """Or a folder that `vlp embed` wrote, where samples are found by key and caption."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.features is None):
            raise UserError("Write either model='run/' or features='features/'.")

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
            return stored(self.features).identity
        from data_pipelines.curation.features import model_hash

        return model_hash(self.model or "")

    def images(self, candidates: Sequence[Candidate]) -> Float32[np.ndarray, "candidates dim"]:
        """Return the image features of candidates, unit-length rows."""
        if self.features:
            return self.pairs(candidates)[0]
        from data_pipelines.curation.features import image_features

        return image_features(self.model or "", candidates)

    def pairs(
        self, candidates: Sequence[Candidate]
    ) -> tuple[Float32[np.ndarray, "candidates dim"], Float32[np.ndarray, "candidates dim"]]:
        """Return the image and the text features of candidates, unit-length rows."""
        if self.features:
            found = np.stack([_found(stored(self.features), one) for one in candidates])
            return found[:, 0], found[:, 1]
        from data_pipelines.curation.features import text_features

        text = text_features(self.model or "", candidates)  # fails first: a caption may be missing
        return self.images(candidates), text


@read_once
def stored(folder: str) -> StoredFeatures:
    """Return the features of a folder, opened once in a process."""
    return open_features(Path(folder))


class Rows:
    """One field of records that are on the disk, as unit-length features."""

    def __init__(self, records: np.ndarray, name: str, order: np.ndarray | None = None) -> None:
        self._field, self._order = records[name], order

    def __len__(self) -> int:
        return len(self._field)

    def __getitem__(self, rows: slice | np.ndarray) -> Float32[np.ndarray, "_ dim"]:
        wanted = rows if self._order is None else self._order[rows]
        return unit(self._field[wanted].astype(np.float32))


class Left(NamedTuple):
    """What came to a rule."""

    records: np.ndarray
    """Of bytes; on the disk, as they may be more than the memory holds."""
    places: Int64[np.ndarray, "rows"]
    """Of each among all samples."""
    ids: UInt64[np.ndarray, "rows"]
    """Hash of each key, for an order that no order of shards changes."""


@contextmanager
def left_on_disk(columns: Columns, form: Callable[[int], np.dtype]) -> Iterator[Left]:
    """Write down the values of the rows that are left, in a file that goes with the block.

    Args:
        columns: Of values that are bytes of one width.
        form: Returns the record that so many bytes are.
    """
    width, places, ids = 0, [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    with TemporaryFile() as file:
        for column in columns:
            rows = np.flatnonzero(column.left)
            if len(rows):  # a shard of which nothing was scored has values of no width
                width = column.bytes.shape[1]
                file.write(column.bytes[rows].tobytes())
                places.append(column.first + rows)
                ids.append(np.array([hash64(column.keys[row]) for row in rows.tolist()], np.uint64))
        file.flush()
        is_any = any(map(len, places))
        records = np.memmap(file, form(width), "r") if is_any else np.empty(0, form(8))
        yield Left(records, np.concatenate(places), np.concatenate(ids))


def unit(rows: Float32[np.ndarray, "*_ dim"]) -> Float32[np.ndarray, "*_ dim"]:
    """Return rows at unit length."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _found(features: StoredFeatures, one: Candidate) -> Float32[np.ndarray, "2 dim"]:
    row = features.row(one.key, one.text)
    pair = None if row is None else features.pair(row).astype(np.float32)
    if pair is None or not np.isfinite(pair).all() or not pair.any(axis=1).all():
        raise SampleFault("no features of it")
    return unit(pair)
