"""Parquet tables about pictures that are not here: which there are, and the keys of their rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.faults import Faults
from data_pipelines.keep_list import MOST
from vlp.console import warn
from vlp.errors import UserError, first_line

KEYS = ("key", "uid", "id")
"""Columns that may name a row."""
STRINGS = (pa.string(), pa.large_string())
BYTES = (pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view())
"""What writers that do not say that it is text, and newer ones, give text as."""


class DamagedTable(UserError):
    """A table that cannot be read."""


def find_tables(raw: str) -> list[Path]:
    """Return the tables that a name stands for: a file, a pattern, or a folder without shards."""
    if raw.endswith(".parquet"):
        return [Path(path) for path in sorted(glob(raw, recursive=True))]
    folder = Path(raw)
    if not folder.is_dir() or any(folder.rglob("*.tar")):
        return []
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*.parquet")))
    return [folder / path for path in found if not any(p.startswith(".") for p in path.parts)]


def open_tables(tables: Sequence[Path]) -> tuple[list[Path], list[list[str]], Faults]:
    """Return the tables that can be read, the keys of their rows, and which are damaged.

    Raises:
        UserError: None can be read, they have no rows, or keys do not tell their rows apart.
    """
    usable, keys, faults, damaged = [], [], Faults(), []
    for path in tables:
        try:
            own = table_keys(path)
        except DamagedTable as error:
            damaged.append(error)
            faults.add("table cannot be read", "", path.name)
            continue
        _check_keys(path, own)
        usable.append(path)
        keys.append(own)
    if not usable:
        raise damaged[0]
    if damaged:
        told = f"{len(damaged)} of {len(tables)} tables are left out"
        warn(f"{told}, as they cannot be read, such as: {damaged[0]}")
    if not any(keys):
        raise UserError(f"{tables[0]} has no rows{_and_others(len(tables) - 1)}.")
    return usable, keys, faults


def table_keys(path: Path) -> list[str]:
    """Return the key of every row of a table: of the first column of ``KEYS``, else its place.

    Raises:
        DamagedTable: The file cannot be read.
        UserError: A row has no key, or two columns have one name.
    """
    with reading(path):
        file = pq.ParquetFile(path)
        _check_names(path, file.schema_arrow.names)
        name = next((name for name in KEYS if name in file.schema_arrow.names), None)
        if name is None:
            return [str(place) for place in range(file.metadata.num_rows)]
        read = file.read(columns=[name], use_threads=False)[name]
    column = decoded(pa.concat_arrays(read.chunks)) if len(read) else pa.array([], pa.string())
    if column.null_count:
        row = column.to_pylist().index(None)
        raise UserError(
            f"Rows of {path} have no {name}: {column.null_count}, the first is row {row}. Give "
            f"each one, or leave out the column: rows are named by their numbers then."
        )
    keys = column.to_pylist()
    return keys if pa.types.is_string(column.type) else [str(key) for key in keys]


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise UserError where columns have one name: which of them is meant, nothing tells."""
    if len(set(names)) < len(names):
        ((name, times),) = Counter(names).most_common(1)
        raise UserError(f"{times} columns of {path} are called {name!r}. Rename all but one.")


def _check_keys(path: Path, keys: Sequence[str]) -> None:
    """Raise UserError where more rows have one key than a keep-list can hold copies of it."""
    if len(set(keys)) < len(keys):
        ((key, times),) = Counter(keys).most_common(1)
        if times > MOST:
            raise UserError(
                f"{times} rows of {path} have the key {key!r}, and a list names a sample at most "
                f"{MOST} times. Give rows a uid of their own."
            )


def _and_others(count: int) -> str:
    return f", nor do {count} others" if count else ""


def decoded(column: pa.Array) -> pa.Array:
    """Return a column; bytes as the text that they are, null where that is not UTF-8."""
    if column.type not in (*STRINGS, *BYTES):
        return column
    try:
        text = column if column.type in STRINGS else column.cast(pa.large_string())
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        found = []
        for data in column.cast(pa.large_binary()).to_pylist():
            try:
                found.append(None if data is None else data.decode())
            except UnicodeDecodeError:
                found.append(None)
        return pa.array(found, pa.large_string())


@contextmanager
def reading(table: Path) -> Iterator[None]:
    """Raise DamagedTable, with the table's name, for what its reader raises."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DamagedTable(f"Cannot read the table {table}: {first_line(error)}.") from None
