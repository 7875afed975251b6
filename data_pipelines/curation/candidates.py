"""Samples as filters look at them: each part is read or made once, when it is first asked for.

A caption costs a read of some bytes, a picture's size its header, a decoded picture milliseconds;
so a filter pays for what it looks at, and what two filters look at is made once.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pipelines.faults import SampleFault
from data_pipelines.shards import read_members, text_of
from data_pipelines.tar_index import CAPTION_EXTENSIONS, Entry, open_index
from vlp.errors import UserError, first_line
from vlp.image import HEAD, ImageError, decode, size
from vlp.sample import MARK, Sample

CAPTIONS = ("caption", "text")
"""Columns of a table that may hold the caption; img2dataset's and DataComp's."""
SIDES = (("original_width", "original_height"), ("width", "height"))
KEYS = ("key", "uid", "id")


@runtime_checkable
class Record(Protocol):
    """Where the parts of a sample come from."""

    key: str

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption and the metadata."""
        ...

    def image(self) -> bytes:
        """Return the encoded picture."""
        ...

    def size(self) -> tuple[int, int]:
        """Return width and height in pixels, as the header has them."""
        ...

    def num_bytes(self) -> int:
        """Return the size of the encoded picture."""
        ...


class Candidate:
    """A sample that filters decide about.

    Every part raises SampleFault or ImageError where the sample lacks it or it is damaged.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.key = record.key
        self.pixels: dict[str, Any] = {}
        """By model, the picture as its image tower takes it; see ``features.py``."""
        self.features: dict[tuple[str, str], Any] = {}

    @classmethod
    def of(cls, sample: Sample) -> "Candidate":
        """Return a sample that is in memory as a candidate."""
        return cls(InMemory(sample))

    @property
    def text(self) -> str:
        """The caption; only a sample with a class (``cls``) may have an empty one."""
        text, metadata = self._told
        if not text and "cls" not in metadata:
            raise SampleFault("caption is empty")
        return text

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What else is said of the sample: ``.json`` and ``.cls``, or the columns of a table."""
        return self._told[1]

    @cached_property
    def image(self) -> bytes:
        """The encoded picture."""
        return self.record.image()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header."""
        return self.record.size()

    @property
    def num_bytes(self) -> int:
        """Size of the encoded picture."""
        return self.record.num_bytes()

    @cached_property
    def picture(self) -> Image.Image:
        """The first frame as upright RGB."""
        return decode(self.image)

    def forget_picture(self) -> None:
        """Give back the memory of the decoded and the encoded picture."""
        self.__dict__.pop("picture", None)
        self.__dict__.pop("image", None)

    @cached_property
    def id(self) -> int:
        """64 bits of the key: what is drawn by chance for a sample follows from it and a seed."""
        return hash64(self.key)

    @cached_property
    def _told(self) -> tuple[str, Mapping[str, Any]]:
        return self.record.told()


class InMemory:
    """A sample in memory."""

    def __init__(self, sample: Sample) -> None:
        self.key, self._sample = sample.key, sample

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption and the metadata."""
        return self._sample.text, _unmarked(self._sample.metadata)

    def image(self) -> bytes:
        """Return the encoded picture."""
        return self._sample.image

    def size(self) -> tuple[int, int]:
        """Return width and height, from the header."""
        return size(self._sample.image)

    def num_bytes(self) -> int:
        """Return the size of the encoded picture."""
        return len(self._sample.image)


class InShard:
    """A sample in a tar file, of which only what is asked for is read."""

    def __init__(self, entry: Entry) -> None:
        self.key, self._entry = entry.key, entry

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption and the metadata."""
        text, metadata = text_of(read_members(self._entry, CAPTION_EXTENSIONS))
        return text, _unmarked(metadata)

    def image(self) -> bytes:
        """Return the encoded picture."""
        return next(iter(read_members(self._entry, self._extension).values()))

    def size(self) -> tuple[int, int]:
        """Return width and height, from the first bytes where they do."""
        try:
            return size(next(iter(read_members(self._entry, self._extension, HEAD).values())))
        except ImageError:
            return size(self.image())

    def num_bytes(self) -> int:
        """Return the size of the encoded picture."""
        return self._entry.members[self._extension[0]].size

    @property
    def _extension(self) -> tuple[str, ...]:
        return (self._entry.extension() or "",)


class InTable:
    """A row of a Parquet table about pictures that are not here, such as DataComp's."""

    def __init__(self, row: "TableRow", place: int) -> None:
        self._row = row
        self.key = str(next((row[name] for name in KEYS if name in row), place))

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption, and all columns as metadata."""
        self._check()
        caption = next((self._row[name] for name in CAPTIONS if name in self._row), None)
        if caption is None:
            raise SampleFault("no caption")
        return str(caption).strip(), self._row

    def image(self) -> bytes:
        """Raise SampleFault: a table has no pictures."""
        raise SampleFault("a table holds no picture")

    def num_bytes(self) -> int:
        """Raise SampleFault: a table has no pictures."""
        raise SampleFault("a table holds no picture")

    def size(self) -> tuple[int, int]:
        """Return width and height, from their columns."""
        self._check()
        for names in SIDES:
            width, height = (self._row.get(name) for name in names)
            if width and height and width == width and height == height:  # a NaN is none
                return int(width), int(height)
        raise SampleFault("no width and height")

    def _check(self) -> None:
        # img2dataset's tables have rows of pictures that are in no shard.
        if self._row.get("status", "success") != "success":
            raise SampleFault("picture was not downloaded")


class TableRow(Mapping[str, Any]):
    """A row of a table; a column becomes Python values when a row is first asked for it."""

    def __init__(self, columns: "_Columns", row: int) -> None:
        self._columns, self._row = columns, row

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._row]

    def __contains__(self, name: object) -> bool:
        return name in self._columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)


def open_candidates(path: Path, wanted: Sequence[int]) -> Iterator[Candidate]:
    """Yield the candidates of a shard or a table at these rows, ascending.

    Raises:
        UserError: The file cannot be read.
    """
    if path.suffix == ".parquet":
        yield from map(Candidate, _rows(path, wanted))
    else:
        index = open_index(path)
        yield from (Candidate(InShard(index[place])) for place in wanted)


def keys_of(path: Path) -> list[str]:
    """Return the key of every row of a shard or a table.

    Raises:
        UserError: The file cannot be read.
    """
    if path.suffix != ".parquet":
        return open_index(path).keys
    with _reading(path):
        file = pq.ParquetFile(path)
        name = next((name for name in KEYS if name in file.schema_arrow.names), None)
        if name is None:
            return [str(place) for place in range(file.metadata.num_rows)]
        return [str(key) for key in file.read(columns=[name])[name].to_pylist()]


def hash64(text: str) -> int:
    """Return 64 bits that follow from a text."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class _Columns(dict[str, list]):
    """Columns of some rows, as far as they were asked for."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        super().__init__()
        self.names = dict.fromkeys(rows.schema.names)
        self._rows = rows

    def __missing__(self, name: str) -> list:
        self[name] = self._rows.column(name).to_pylist()
        return self[name]


def _rows(path: Path, wanted: Sequence[int]) -> Iterator[InTable]:
    rows, start = np.asarray(wanted, np.int64), 0
    with _reading(path):
        for batch in pq.ParquetFile(path).iter_batches():
            inside = rows[(start <= rows) & (rows < start + len(batch))]
            columns = _Columns(batch.take(pa.array(inside - start)))
            for number, place in enumerate(inside.tolist()):
                yield InTable(TableRow(columns, number), place)
            start += len(batch)


@contextmanager
def _reading(table: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"Cannot read the table {table}: {first_line(error)}.") from None


def _unmarked(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without the toy world's mark, which would tell a filter the answer."""
    return {name: value for name, value in metadata.items() if name != MARK}
