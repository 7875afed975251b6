"""Rows of a CSV, TSV, JSONL or Parquet table, one after another."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from data_pipelines.faults import Faults, SampleFault
from vlp.errors import UserError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
ROWS_LOOKED_AT = 100
"""First rows of a JSONL file that say which columns it has."""


class Table(NamedTuple):
    """The rows of a table, read as they are asked for."""

    columns: list[str]
    rows: Iterator[dict[str, Any]]
    count: int | None
    """Rows in all, where that is known."""


def open_table(path: Path, *, text_columns: Sequence[str], faults: Faults) -> Table:
    """Return the rows of a table; ``text_columns`` stay text where a CSV's could be numbers.

    Raises:
        UserError: The file is damaged, or it is another format than its name says.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            file = pq.ParquetFile(path)
            return Table(file.schema_arrow.names, _parquet_rows(file, path), file.metadata.num_rows)
        if suffix in (".csv", ".tsv"):
            table = _read_csv(path, "\t" if suffix == ".tsv" else ",", text_columns, faults)
            rows = (row for batch in table.to_batches(1000) for row in batch.to_pylist())
            return Table(table.column_names, rows, table.num_rows)
        rows = _jsonl_rows(path, faults)
        first = list(itertools.islice(rows, ROWS_LOOKED_AT))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    if not first:
        raise UserError(f"{path} holds no rows{f' ({faults.summary()})' if faults else ''}.")
    columns = list(dict.fromkeys(name for row in first for name in row))
    return Table(columns, itertools.chain(first, rows), None)


def _read_csv(path: Path, delimiter: str, text_columns: Sequence[str], faults: Faults) -> pa.Table:
    def skip(row: Any) -> str:
        faults.add("row has too many or too few columns", path.name, f"row {row.number}")
        return "skip"

    return csv.read_csv(
        path,
        # Threads would lose the row number, and abort the process when a file is refused while
        # they still read.
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
        ),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
    )


def _parquet_rows(file: pq.ParquetFile, path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows a few at a time: each may hold an image."""
    try:
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _jsonl_rows(path: Path, faults: Faults) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    yield parse_object(line, "row is no JSON object")
            except SampleFault as fault:
                faults.add(str(fault), path.name, f"line {number}")


def parse_object(data: bytes, reason: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        SampleFault: The bytes are something else; its message is the reason given.
    """
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SampleFault(reason)
    return value


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    hint = " Save it as UTF-8." if "UTF8" in reason else ""
    return UserError(f"Cannot read the table {path}: {reason}.{hint}")
