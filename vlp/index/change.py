"""An index that is kept up to date: rows are added, deleted, and put together again.

A change writes new files, then replaces ``state.json``; files that no state names any more, as of a
change that was stopped, are removed by the next one.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from vlp.console import show, warn
from vlp.errors import UserError, first_line
from vlp.index.build import maker, read_source
from vlp.index.candidates import SMALL
from vlp.index.exact import Matrix
from vlp.index.export import check_name, export_rows
from vlp.index.folder import (
    SEGMENTS,
    STATE,
    Index,
    State,
    load_index,
    read_deleted,
    read_state,
    write_state,
)
from vlp.index.metadata import FIELD
from vlp.index.plan import Plan
from vlp.index.segment import (
    Segment,
    check_hashes,
    new_segment,
    write_plan,
    write_quick,
    write_rows,
)
from vlp.output import lock_folder, read_record, whole_file


@dataclass(frozen=True, eq=False)
class Alive:
    """The rows of an index that are not deleted, in their order, as one matrix."""

    index: Index
    rows: Int64[np.ndarray, "alive"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: slice) -> np.ndarray:
        return self.index.vectors(self.rows[places])


def update_index(
    folder: Path,
    *,
    add: Path | None = None,
    delete: Sequence[str] = (),
    compact: bool = False,
    check: bool = False,
    export: Path | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Add, delete, compact, check and export, in this order; return what the index holds then.

    Raises:
        UserError: The index is damaged, what is added is another model's, or a key is not there.
    """
    if not (add or delete or compact or check or export):
        raise UserError("Nothing to do. Give --add, --delete, --compact, --check or --export.")
    if export is not None:
        check_name(export)
    read_state(folder)
    if add or delete or compact:  # what only reads may be where nobody can write
        with lock_folder(folder):
            if add is not None:
                add_rows(folder, add, model=model)
            if delete:
                delete_keys(folder, _keys(delete))
            if compact:
                compact_index(folder)
    index = load_index(folder)
    if check:
        for segment in index.segments:
            check_hashes(segment.folder)
        show(f"Every file of {folder} is as it was written.")
    if export is not None:
        export_rows(index, export)
    rows, parts = len(index), len(index.segments)
    _advise(folder, index)
    show(f"{folder} holds {rows:,} samples in {parts} part{'s' * (parts != 1)}.")
    return {"rows": rows, "parts": parts, "generation": index.state.generation}


def add_rows(folder: Path, source: Path, *, model: str | None = None) -> None:
    """Add features, or all of another index; of a key that is there, the new rows count."""
    rows, metadata = _source(folder, source, model)
    index = load_index(folder)
    plan = Plan() if len(rows) <= SMALL else index.segments[0].plan
    written = _write(folder, index.state, rows, metadata, plan)
    replaced = _ids_of(index, metadata["key"])
    _commit(folder, written, np.union1d(read_deleted(folder, index.state), replaced))
    new = f", {len(replaced):,} of them in place of others" if len(replaced) else ""
    show(f"Added {len(rows):,} samples of {source} to {folder}{new}.")


def delete_keys(folder: Path, keys: Sequence[str]) -> None:
    """Delete samples: they are found no more, and their bytes go when the index is compacted.

    Raises:
        UserError: A key is not there.
    """
    index = load_index(folder)
    known = pa.concat_tables([_alive(segment) for segment in index.segments])["key"]
    asked = pa.array(list(dict.fromkeys(keys)), pa.string())
    missing = asked.filter(pc.call_function("invert", [_is_in(asked, known)]))
    if len(missing):
        raise UserError(
            f"{len(missing)} of {len(asked)} keys are not in the index {folder}, such as "
            f"{missing[0].as_py()!r}. Nothing was deleted."
        )
    gone = _ids_of(index, asked)
    _commit(folder, index.state, np.union1d(read_deleted(folder, index.state), gone))
    show(f"Deleted {len(gone):,} rows of {folder}.")


def compact_index(folder: Path) -> None:
    """Make one segment of all, without deleted rows; the numbers of rows stay."""
    index = load_index(folder)
    if len(index.segments) == 1 and index.state.deleted is None:
        show(f"{folder} is compact already.")
        return
    if not len(index):
        raise UserError(f"All samples of {folder} are deleted: add some before it is compacted.")
    rows, metadata = alive_rows(index)
    before = replace(index.state, segments=())
    whole = _write(folder, before, rows, metadata, index.segments[0].plan)
    _commit(folder, whole, np.empty(0, np.int64))
    show(f"{folder} is one part now.")


def alive_rows(index: Index) -> tuple[Alive, pa.Table]:
    """Return the vectors and the metadata of what an index holds, in the order of its rows."""
    tables = [_alive(segment) for segment in index.segments]
    return Alive(index, np.flatnonzero(index.alive)), pa.concat_tables(tables)


def _advise(folder: Path, index: Index) -> None:
    """Say where an index has outgrown what it was built to be."""
    compared = sum(len(one) for one in index.segments if one.plan.is_exact)
    memory = ((read_record(folder) or {}).get("config") or {}).get("memory")
    walked = sum(one.bytes for one in index.segments)
    if memory is not None and walked > memory:
        warn(f"{folder} takes {walked:,} bytes, more than the {memory:,} that it was built for.")
    if compared > 2 * SMALL:
        warn(f"{compared:,} rows of {folder} are compared one by one: build it again to be faster.")


def _source(folder: Path, source: Path, model: str | None) -> tuple[Matrix, pa.Table]:
    """Return rows to add and what they are, of the model of the index."""
    state = read_state(folder)
    if (source / STATE).is_file():
        other = load_index(source)
        made, (rows, metadata) = other.model_hash, alive_rows(other)
        metadata = metadata.drop_columns(["id"])
    else:
        rows, metadata = read_source(source)
        made = maker(source, model)["model_hash"]
    if made != state.model_hash:
        raise UserError(
            f"{source} is of another model than the index {folder}, which is of {state.model}. "
            f"Embed its samples with that one."
        )
    if rows[:1].shape[1] != state.dim:
        raise UserError(
            f"{source} has features of {rows[:1].shape[1]} numbers, the index of {state.dim}."
        )
    return rows, metadata


def _write(folder: Path, state: State, rows: Matrix, metadata: pa.Table, plan: Plan) -> State:
    """Write one more segment, and return the state that names it, too."""
    _sweep(folder, read_state(folder))
    there = sorted(path.name for path in (folder / SEGMENTS).iterdir())
    name = f"{int(there[-1]) + 1:06d}"
    with new_segment(folder / SEGMENTS / name) as part:
        vectors = write_rows(part, rows, metadata, state.next_id)
        write_plan(part, plan)
        if not plan.is_exact:
            write_quick(part, plan, folder / SEGMENTS / there[0], vectors)
    new = 0 if "id" in metadata.column_names else len(rows)
    return replace(state, segments=(*state.segments, name), next_id=state.next_id + new)


def _commit(folder: Path, state: State, deleted: Int64[np.ndarray, "ids"]) -> None:
    """Let an index be what a state says, but for deleted rows, then remove what was before."""
    name = f"deleted_{state.generation + 1:06d}.npy" if len(deleted) else None
    if name is not None:
        with whole_file(folder / name) as file:
            np.save(file, deleted)
    _sweep(folder, write_state(folder, replace(state, deleted=name)))


def _sweep(folder: Path, state: State) -> None:
    """Remove segments and lists of deleted rows that a state does not name."""
    for path in (folder / SEGMENTS).iterdir():
        if path.name not in state.segments:
            shutil.rmtree(path)
    for path in folder.glob("deleted_*.npy"):
        if path.name != state.deleted:
            path.unlink()


def _alive(segment: Segment) -> pa.Table:
    """Return what is known of the rows of a segment that are not deleted."""
    names = [name for name in segment.metadata.column_names if not name.startswith(FIELD)]
    return segment.metadata.select(names).filter(pa.array(segment.alive))


def _ids_of(index: Index, keys: pa.Array | pa.ChunkedArray) -> Int64[np.ndarray, "ids"]:
    """Return the numbers of all rows with one of the keys."""
    found = [
        segment.ids[_is_in(segment.metadata["key"], keys).to_numpy() & segment.alive]
        for segment in index.segments
    ]
    return np.concatenate(found)


def _is_in(
    column: pa.Array | pa.ChunkedArray, keys: pa.Array | pa.ChunkedArray
) -> pa.Array | pa.ChunkedArray:
    return pc.call_function("is_in", [column], pc.SetLookupOptions(keys))


def _keys(said: Sequence[str]) -> list[str]:
    """Return keys, those of a file of keys read from it."""
    keys = []
    for one in said:
        if not one.endswith(".txt"):
            keys.append(one)
            continue
        try:
            keys += [line for line in Path(one).read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot read the keys in {one}: {first_line(error)}.") from None
    return keys
