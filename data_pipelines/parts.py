"""What is embedded, cut into parts by the data alone: shards, a folder of pictures, or a table.

A part is a few names. Whoever opens it finds the same samples in the same order, on any machine
that sees the files.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.dataset import Dataset, dataset_of, identity_of
from data_pipelines.encoded import Only
from data_pipelines.faults import Faults, SampleFault
from data_pipelines.pack import (
    Columns,
    folder_sample,
    image_file,
    key_of,
    list_images,
    table_sample,
)
from data_pipelines.shards import ShardSet, open_shards, read
from data_pipelines.tables import TABLES
from vlp.batches import batches
from vlp.types import Sample


class Picture(NamedTuple):
    """Where the encoded picture of a sample lies: one seek away."""

    file: str | None
    """None where it lies in a cell of a table, or there is none."""
    offset: int
    size: int


class Opened(NamedTuple):
    """The samples of a part."""

    dataset: Dataset
    picture: Callable[[int], Picture]
    """Of each row."""


class Part(ABC):
    """Some samples that follow each other."""

    @abstractmethod
    def open(self, only: Only) -> Opened:
        """Return its samples, of which no more is read than is encoded."""


class Source(NamedTuple):
    """All parts of what is embedded."""

    parts: Sequence[Part]
    files: Sequence[Path]
    """That it is read from."""
    faults: Faults
    """What was found wrong while it was cut."""


def cut(source: str, *, size: int, only: Only, image: str, caption: str) -> Source:
    """Return what a name stands for, cut into parts of about so many samples.

    Shards are not cut: they are put together, and one that is larger is a part.

    Raises:
        UserError: There is nothing of that name, or it holds no samples.
    """
    path, faults = Path(source), Faults()
    if path.suffix.lower() in TABLES and path.is_file():
        wanted = Columns(None if only == "texts" else image, None if only == "images" else caption)
        count = _count_rows(path, wanted, faults)
        starts = range(0, count, size)
        parts = [Rows(path, start, min(start + size, count), wanted) for start in starts]
        return Source(parts, [path], faults)
    if path.is_dir() and not any(path.rglob("*.tar")):
        images = list_images(path, faults)
        return Source([Files(path, few, caption) for few in batches(images, size)], [path], faults)
    shards = open_shards(source)
    return Source(_shard_parts(shards, size), shards.shards, shards.faults)


@dataclass(frozen=True)
class Shards(Part):
    """Whole shards."""

    shards: list[Path]
    counts: list[int]
    is_stated: list[bool]
    """Whether headers are read here for the first time, and what they have wrong is counted."""

    def open(self, only: Only) -> Opened:
        """Return the samples of the shards, in the order of the tars."""
        found = ShardSet(self.shards, np.array(self.counts), np.array(self.is_stated))
        entries = found.entries
        needs = {"needs_caption": only != "images", "needs_image": only != "texts"}

        def picture(row: int) -> Picture:
            entry = entries[row]
            return Picture(str(entry.shard.resolve()), *entry.members[entry.extension() or ""])

        dataset = dataset_of(found, "shards")
        return _opened(replace(dataset, read=lambda row: read(entries[row], **needs)), picture)

    def __str__(self) -> str:
        return " and ".join(map(str, {self.shards[0]: 0, self.shards[-1]: 0}))


@dataclass(frozen=True)
class Files(Part):
    """Pictures of a folder, with captions beside them."""

    folder: Path
    images: list[Path]
    caption: str
    """Field of a ``.json`` beside a picture that holds its caption where there is no ``.txt``."""

    def open(self, only: Only) -> Opened:
        """Return a sample for each picture."""
        needs = {"needs_caption": only != "images", "needs_image": only != "texts"}
        beside = [image.with_suffix(end) for image in self.images for end in (".txt", ".json")]
        keys = [image.relative_to(self.folder).with_suffix("").as_posix() for image in self.images]
        dataset = Dataset(
            name=str(self.folder),
            keys=keys,
            read=lambda row: folder_sample(self.folder, self.images[row], self.caption, **needs),
            files=self.images,
            identity=identity_of([self.caption, *keys], _there([*self.images, *beside])),
        )
        return _opened(dataset, lambda row: _whole(self.images[row]))

    def __str__(self) -> str:
        return f"{self.images[0]} and {len(self.images) - 1} more"


@dataclass(frozen=True)
class Rows(Part):
    """Rows of a table."""

    table: Path
    start: int
    end: int
    columns: Columns

    def open(self, only: Only) -> Opened:
        """Return a sample for each row; the columns say what is read."""
        rows, folder = _read_rows(self), self.table.parent
        images = [image_file(row.get(self.columns.image or ""), folder) for row in rows]
        keys = [key_of(row, self.start + place) for place, row in enumerate(rows)]
        dataset = Dataset(
            name=str(self.table),
            keys=keys,
            read=lambda row: table_sample(rows[row], self.start + row, self.columns, folder),
            files=[self.table],
            identity=identity_of([repr(self), *keys], [self.table, *_there(images)]),
            place=lambda row: self.table.name,
        )
        return _opened(dataset, lambda row: _whole(images[row]))

    def __str__(self) -> str:
        return f"{self.table}, rows {self.start} to {self.end - 1}"


def _opened(dataset: Dataset, picture: Callable[[int], Picture]) -> Opened:
    """Return the samples that a table can hold; others are counted where they are read."""
    return Opened(replace(dataset, read=lambda row: _told(dataset.read(row))), picture)


def _told(sample: Sample) -> Sample:
    """Return a sample that a table can hold.

    Raises:
        SampleFault: Its key or its caption is no UTF-8, as names of files may be.
    """
    for what, text in (("key", sample.key), ("caption", sample.text)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SampleFault(f"{what} is no UTF-8") from None
    return sample


def _shard_parts(shards: ShardSet, size: int) -> list[Part]:
    """Return the shards, those that follow each other together while they are no more than that."""
    groups: list[list[int]] = []
    held = 0
    for number, count in enumerate(shards.counts.tolist()):
        if not groups or held + count > size:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += count
    return [
        Shards(
            [shards.shards[number] for number in group],
            shards.counts[group].tolist(),
            shards.is_stated[group].tolist(),
        )
        for group in groups
    ]


def _count_rows(path: Path, columns: Columns, faults: Faults) -> int:
    table = columns.open(path, faults)
    return sum(1 for _ in table.rows) if table.count is None else table.count


_reading: tuple[Path, int, Iterator[dict[str, Any]]] | None = None


def _read_rows(part: Rows) -> list[dict[str, Any]]:
    """Return the rows of a part; who reads parts in their order reads the table once."""
    global _reading
    if _reading is None or _reading[0] != part.table or _reading[1] > part.start:
        # What is wrong with rows was counted when the table was cut.
        _reading = part.table, 0, part.columns.open(part.table, Faults()).rows
    table, place, rows = _reading
    found = list(itertools.islice(rows, part.start - place, part.end - place))
    _reading = table, part.end, rows
    return found


def _whole(path: Path | None) -> Picture:
    if path is None or not path.is_file():
        return Picture(None, 0, 0)
    return Picture(str(path.resolve()), 0, path.stat().st_size)


def _there(paths: Sequence[Path | None]) -> list[Path]:
    return [path for path in paths if path is not None and path.is_file()]
