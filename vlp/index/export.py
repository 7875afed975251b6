"""An index for others: a table that vector databases read, and hits as a keep-list."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlp.errors import UserError
from vlp.index.folder import Index
from vlp.index.metadata import FIELD, common
from vlp.output import whole_file
from vlp.types import Hit

ROWS = 10_000
"""Rows that are written at a time."""
ARROW = (".arrow", ".feather")


def export_rows(index: Index, path: Path) -> None:
    """Write each sample's id, vector, key, caption, place, JSON and fields, as Parquet or Arrow.

    ``vector`` is a list of a fixed number of floats, as vector databases take it; deleted rows are
    left out.

    Args:
        index: What is written.
        path: Ends in ``.parquet``, ``.arrow`` or ``.feather``.

    Raises:
        UserError: The name ends otherwise.
    """
    check_name(path)
    schema = _schema(index)
    with whole_file(path) as file:
        if path.suffix in ARROW:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in _batches(index, schema):
                    writer.write_batch(batch)
        else:
            with pq.ParquetWriter(file, schema) as writer:
                for batch in _batches(index, schema):
                    writer.write_batch(batch)


def check_name(path: Path) -> None:
    """Raise UserError unless a file's name says that it is Parquet or Arrow."""
    if path.suffix not in (*ARROW, ".parquet"):
        raise UserError(f"The export {path} is Parquet or Arrow. Write rows.parquet or rows.arrow.")


def write_keep_list(index: Index, hits: Sequence[Hit], path: Path) -> None:
    """Write hits as ``keep.parquet`` of `vlp filter --keep-list`: shard, key and copies.

    A shard is named by its path below the folder of all shards of the index.

    Raises:
        UserError: Of a hit it is not known where it lies, or the name does not end in .parquet.
    """
    if path.suffix != ".parquet":
        raise UserError(f"The keep-list {path} is Parquet. Write --export keep.parquet.")
    if lost := [hit.key for hit in hits if not _is_shard(hit.metadata["shard"])]:
        raise UserError(
            f"{lost[0]} lies in no shard, or it is not known in which. `vlp pack` a folder or a "
            f"table, and embed its shards, to export hits."
        )
    folders = {
        os.path.dirname(os.path.abspath(shard))
        for segment in index.segments
        for shard in pc.call_function("unique", [segment.metadata["shard"]]).to_pylist()
        if _is_shard(shard)
    }
    root = os.path.commonpath(folders) if folders else ""
    shards = [os.path.relpath(hit.metadata["shard"], root) for hit in hits]
    columns = {"shard": shards, "key": [hit.key for hit in hits]}
    copies = pa.array([1] * len(hits), pa.int64())
    table = pa.table(
        {name: pa.array(told, pa.string()) for name, told in columns.items()} | {"copies": copies}
    )
    with whole_file(path) as file:
        pq.write_table(table, file)


def _is_shard(file: str | None) -> bool:
    """Return whether a picture lies in a shard, and not in a file of its own."""
    return file is not None and file.endswith(".tar")


def _schema(index: Index) -> pa.Schema:
    """Return the columns of all segments; a field of texts and numbers is a text."""
    own = [field for field in index.segments[0].metadata.schema if not field.name.startswith(FIELD)]
    own.insert(1, pa.field("vector", pa.list_(pa.float32(), index.dim)))
    taken = {field.name for field in own}
    seen: dict[str, set[pa.DataType]] = {}
    for segment in index.segments:
        for field in segment.metadata.schema:
            name = field.name.removeprefix(FIELD)
            if field.name.startswith(FIELD) and name not in taken:
                seen.setdefault(name, set()).add(field.type)
    return pa.schema([*own, *(pa.field(name, common(kinds)) for name, kinds in seen.items())])


def _batches(index: Index, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for segment in index.segments:
        alive = np.flatnonzero(segment.alive)
        for start in range(0, len(alive), ROWS):
            rows = alive[start : start + ROWS]
            table = segment.metadata.take(pa.array(rows))
            numbers = pa.array(segment.vectors[rows].reshape(-1), pa.float32())
            vectors = pa.FixedSizeListArray.from_arrays(numbers, index.dim)
            columns = [
                vectors if field.name == "vector" else _column(table, field) for field in schema
            ]
            yield pa.record_batch(columns, schema=schema)


def _column(table: pa.Table, field: pa.Field) -> pa.Array:
    """Return a column of a segment, or what stands for one that it lacks."""
    for name in (field.name, FIELD + field.name):
        if name in table.column_names:
            return pa.array(table[name].cast(field.type, safe=False).combine_chunks())
    return pa.nulls(len(table), field.type)
