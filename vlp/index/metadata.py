"""What each row of an index is: a table on the disk, mapped into memory, its fields in columns."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlp.features import COLUMNS

FIELD = "field:"
"""Prefix of the columns that hold what the JSON of the samples says, by its names."""
ROWS = 65_536
LARGEST = 2**63 - 1
"""Whole numbers beyond, such as hashes of 64 bits without a sign, are texts."""


def write_metadata(metadata: pa.Table, first_id: int, path: Path) -> None:
    """Write the rows of a table with their numbers, and a typed column for each field.

    A field whose values are numbers is a column of numbers, any other one of texts as JSON spells
    them. Lists and objects stay in the JSON.

    Args:
        metadata: ``key``, ``caption``, ``metadata`` (JSON), ``shard``, ``offset``, ``size``; and
            ``id`` where the rows have numbers already.
        first_id: Number of the first row, where they have none.
        path: File to write, in Arrow's format.
    """
    if "id" not in metadata.column_names:
        ids = pa.array(range(first_id, first_id + len(metadata)), pa.int64())
        metadata = metadata.add_column(0, "id", ids)
    kinds = _kinds(metadata)
    fields = [pa.field(f"{FIELD}{_unicode(name)}", kind) for name, kind in kinds.items()]
    schema = pa.schema([*metadata.schema, *fields])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for some in metadata.to_batches(max_chunksize=ROWS):
            said = [*_said(some)]
            columns = [_column(name, kind, said) for name, kind in kinds.items()]
            writer.write_batch(pa.record_batch([*some.columns, *columns], schema=schema))


def open_metadata(path: Path) -> pa.Table:
    """Return a table that ``write_metadata`` wrote; only what is asked for is read.

    Raises:
        OSError: It is not there, or damaged.
        pa.ArrowInvalid: The same.
    """
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def read_rows(table: pa.Table, rows: Iterable[int]) -> list[dict[str, Any]]:
    """Return what some rows say, the fields of each as a dictionary."""
    # Column by column: slices of the table take five times as long.
    columns = {name: table[name] for name in ("id", *COLUMNS)}
    said = [{name: column[row].as_py() for name, column in columns.items()} for row in rows]
    for one in said:
        one["fields"] = json.loads(one.pop("metadata") or "{}")
    return said


def _kinds(metadata: pa.Table) -> dict[str, pa.DataType]:
    """Return the type of each field that is a number or a text."""
    seen: dict[str, set[pa.DataType]] = {}
    for some in metadata.to_batches(max_chunksize=ROWS):
        for fields in _said(some):
            for name, value in fields.items():
                if isinstance(value, str | int | float):
                    seen.setdefault(name, set()).add(_kind(value))
    return {name: common(kinds) for name, kinds in seen.items()}


def common(kinds: set[pa.DataType]) -> pa.DataType:
    """Return the type of a column that values of all of some types go into."""
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    return next(iter(kinds)) if len(kinds) == 1 else pa.string()


def _kind(value: str | int | float) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int) and -LARGEST <= value <= LARGEST:
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _said(some: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for text in some["metadata"].to_pylist():
        fields = json.loads(text or "{}")
        yield fields if isinstance(fields, dict) else {}


def _column(name: str, kind: pa.DataType, said: list[dict[str, Any]]) -> pa.Array:
    values = [fields.get(name) for fields in said]
    values = [value if isinstance(value, str | int | float) else None for value in values]
    if kind == pa.string():
        values = [value if value is None else _text(value) for value in values]
    elif kind == pa.float64():
        values = [value if value is None else float(value) for value in values]
    return pa.array(values, kind)


def _text(value: str | int | float) -> str:
    return _unicode(value) if isinstance(value, str) else json.dumps(value)


def _unicode(text: str) -> str:
    """Return a text that Arrow takes; half of a pair of surrogates becomes JSON's spelling."""
    return text.encode(errors="backslashreplace").decode()
