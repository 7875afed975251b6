"""Rows of Parquet tables about pictures that are not here, such as DataComp's and img2dataset's.

A row is a sample like any other. Filters that look at one field alone get it of many rows at once,
which spares what each sample costs apart from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int64

from data_pipelines.curation.tables import KEYS, decoded, reading
from data_pipelines.faults import SampleFault

CAPTIONS = ("caption", "text")
"""Columns that may hold the caption; img2dataset's and DataComp's."""
SIDES = (("original_width", "original_height"), ("width", "height"))
MOST_PIXELS = 2**31
"""A side from here on is none."""
WINDOW = 65_536
"""Rows at a time."""
NO_PICTURE, NO_CAPTION, NO_SIZE = "picture was not downloaded", "no caption", "no width and height"
EMPTY, DAMAGED = "caption is empty", "table is damaged"


class Said(NamedTuple):
    """What a filter says of some rows."""

    values: Sequence[Any] | np.ndarray
    """Of the rows that no fault names, in their order."""
    faults: dict[str, Bool[np.ndarray, "rows"]]
    """By reason, the rows that could not be scored; of several reasons the first counts."""


class Rows:
    """Some rows of a table; a column is read when it is first asked for."""

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], pa.Array],
        places: Int64[np.ndarray, "rows"],
    ) -> None:
        self.names, self._load = dict.fromkeys(names), load
        self.places = places
        """Of each row in the table."""

    def __len__(self) -> int:
        return len(self.places)

    def at(self, mask: Bool[np.ndarray, "rows"]) -> "Rows":
        """Return some of the rows."""
        inside = pa.array(np.flatnonzero(mask))
        return Rows(list(self.names), lambda name: self._load(name).take(inside), self.places[mask])

    def records(self) -> Iterator["InTable"]:
        """Yield each row as a sample of its own."""
        values = _Values(self)
        for row, place in enumerate(self.places.tolist()):
            yield InTable(_Row(values, row), place)

    def of_captions(self, say: Callable[[list[str]], Sequence[Any]]) -> Said:
        """Return what a function says of the captions."""
        texts, faults = self._captions
        return Said(say(texts), faults)

    def of_sizes(self, say: Callable[[Int64[np.ndarray, "pictures 2"]], np.ndarray]) -> Said | None:
        """Return what a function says of widths and heights; None where they are not numbers."""
        columns = [name for names in SIDES for name in names if name in self.names]
        if not all(_is_number(self._load(name)) for name in columns):
            return None
        sizes, is_known = np.zeros((len(self), 2), np.int64), np.zeros(len(self), bool)
        for names in SIDES:
            if set(names) <= self.names.keys():
                own = np.stack([self._numbers(name) for name in names], axis=1)  # [rows, 2]
                is_new = ~is_known & is_side(own).all(axis=1)
                sizes[is_new] = own[is_new]
                is_known |= is_new
        faults = {NO_PICTURE: ~self._is_here, NO_SIZE: ~is_known}
        return Said(say(sizes[self._is_here & is_known]), faults)

    def of_numbers(self, name: str) -> Said | None:
        """Return the numbers of a column; None where there is no such column of numbers."""
        if name not in self.names or not _is_number(self._load(name)):
            return None
        is_known = ~np.asarray(self._load(name).is_null())
        known = self._is_here & self._has_caption & is_known
        faults = {
            NO_PICTURE: ~self._is_here,
            NO_CAPTION: ~self._has_caption,
            f"no number in {name}": ~is_known,
        }
        return Said(self._numbers(name)[known], faults)

    @cached_property
    def _captions(self) -> tuple[list[str], dict[str, Bool[np.ndarray, "rows"]]]:
        is_told = self._is_here & self._has_caption
        faults = {NO_PICTURE: ~self._is_here, NO_CAPTION: ~self._has_caption}
        name = _caption_of(self.names)
        column = self._load(name).filter(pa.array(is_told)) if name else pa.array([], pa.string())
        texts = [caption_text(value) for value in column.to_pylist()]
        if "cls" not in self.names and not all(texts):
            is_empty = np.zeros(len(self), bool)
            is_empty[is_told] = [not text for text in texts]
            texts = [text for text in texts if text]
            faults[EMPTY] = is_empty
        return texts, faults

    @cached_property
    def _is_here(self) -> Bool[np.ndarray, "rows"]:
        # img2dataset's tables have rows of pictures that are in no shard.
        if "status" not in self.names:
            return np.ones(len(self), bool)
        return np.array([told == "success" for told in self._load("status").to_pylist()], bool)

    @cached_property
    def _has_caption(self) -> Bool[np.ndarray, "rows"]:
        name = _caption_of(self.names)
        return ~np.asarray(self._load(name).is_null()) if name else np.zeros(len(self), bool)

    def _numbers(self, name: str) -> Float64[np.ndarray, "rows"]:
        """Return a column of numbers, NaN where there is none."""
        return self._load(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


class InTable:
    """A row of a table, as a sample."""

    def __init__(self, row: "_Row", place: int) -> None:
        self._row, self._place = row, place

    @property
    def key(self) -> str:
        """The value of the first column of ``KEYS``, else the row's number."""
        name = next((name for name in KEYS if name in self._row), None)
        return str(self._row[name] if name else self._place)

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption, and all columns as metadata."""
        self._check()
        name = _caption_of(self._row)
        caption = self._row[name] if name else None
        if caption is None:
            raise SampleFault(NO_CAPTION)
        return caption_text(caption), self._row

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
            try:
                width, height = (float(self._row.get(name) or 0) for name in names)
            except (TypeError, ValueError, OverflowError):
                continue
            if is_side(np.array([width, height])).all():
                return int(width), int(height)
        raise SampleFault(NO_SIZE)

    def _check(self) -> None:
        if self._row.get("status", "success") != "success":
            raise SampleFault(NO_PICTURE)


class _Row(Mapping[str, Any]):
    """A row of a table."""

    def __init__(self, values: "_Values", row: int) -> None:
        self._values, self._row = values, row

    def __getitem__(self, name: str) -> Any:
        return self._values[name][self._row]

    def __contains__(self, name: object) -> bool:
        return name in self._values.rows.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._values.rows.names)

    def __len__(self) -> int:
        return len(self._values.rows.names)


class _Values(dict[str, list]):
    """Columns of some rows as Python values, as far as they were asked for."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def __missing__(self, name: str) -> list:
        if name not in self.rows.names:
            raise KeyError(name)
        self[name] = self.rows._load(name).to_pylist()
        return self[name]


class _Group(dict[str, pa.Array | None]):
    """Columns of a row group, as far as they were asked for."""

    def __init__(self, file: pq.ParquetFile, group: int) -> None:
        super().__init__()
        self._file, self._group = file, group

    def __missing__(self, name: str) -> pa.Array | None:
        try:
            # Threads would only take turns: as many tables are read at once as there are cores.
            table = self._file.read_row_group(self._group, columns=[name], use_threads=False)
        except (OSError, pa.ArrowException):
            self[name] = None
        else:
            self[name] = decoded(pa.concat_arrays(table[name].chunks))
        return self[name]

    def column(self, name: str) -> pa.Array:
        """Return a column.

        Raises:
            SampleFault: It is damaged; so are all rows that are asked for it.
        """
        if (found := self[name]) is None:
            raise SampleFault(DAMAGED)
        return found


def open_rows(path: Path, wanted: Sequence[int]) -> Iterator[Rows]:
    """Yield the rows at some places of a table, ascending, at most ``WINDOW`` at a time.

    Raises:
        UserError: The file cannot be read.
    """
    rows, start = np.asarray(wanted, np.int64), 0
    with reading(path):
        file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        columns, count = _Group(file, group), file.metadata.row_group(group).num_rows
        first, last = np.searchsorted(rows, [start, start + count]).tolist()
        for at in range(first, last, WINDOW):
            places = rows[at : min(at + WINDOW, last)]
            yield Rows(file.schema_arrow.names, _part(columns, places - start), places)
        start += count


def caption_text(value: Any) -> str:
    """Return the caption that a value of a table is."""
    return str(value).strip()


def is_side(numbers: Float64[np.ndarray, "*_"]) -> Bool[np.ndarray, "*_"]:
    """Return which numbers are sides of pictures in pixels; a NaN is none."""
    return (numbers >= 1) & (numbers < MOST_PIXELS)


def _part(columns: _Group, inside: Int64[np.ndarray, "rows"]) -> Callable[[str], pa.Array]:
    if len(inside) and inside[-1] - inside[0] + 1 == len(inside):
        return lambda name: columns.column(name).slice(int(inside[0]), len(inside))
    return lambda name: columns.column(name).take(pa.array(inside))


def _caption_of(names: Mapping[str, Any]) -> str | None:
    return next((name for name in CAPTIONS if name in names), None)


def _is_number(column: pa.Array) -> bool:
    return pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
