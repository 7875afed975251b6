"""What filters say of every sample, written down: one Parquet file for each shard.

``scores/<shard>.parquet`` has a row for each sample: its key, and for each filter a column of its
values and a column of its status: ``ok``, ``failed: reason``, or null where it was not asked. A
column says what it follows from: the shard, the filter and its options, the model. So another
threshold never scores again, another model always does, and a run that was stopped goes on.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.curation.candidates import keys_of, open_candidates
from data_pipelines.curation.columns import Column, Columns
from data_pipelines.curation.rules import Filter, scoring_options
from data_pipelines.curation.sheet import Mask, Sheet
from data_pipelines.curation.table_rows import open_rows
from data_pipelines.engine import Engine
from data_pipelines.sources import relative_names
from data_pipelines.tar_index import origin
from vlp.output import whole_file

ORIGIN = b"vlp.scored_from"
"""Where a column says what it was computed from."""
STATUS = " status"


class Task(NamedTuple):
    """A shard to score."""

    source: Path
    target: Path
    wanted: dict[str, Mask]
    """By column, the rows that the filter is asked about."""

    def __str__(self) -> str:
        return str(self.source)


class Spent(NamedTuple):
    """What scoring a shard took."""

    seconds: dict[str, float]
    """By column."""
    counts: dict[str, int]
    """Samples scored now, by column."""


@dataclass
class ScoredSet:
    """The scores of some shards on disk."""

    sources: Sequence[Path]
    folder: Path
    keys: list[list[str]]
    """Of each shard."""
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    num_reused: int = 0
    """Shards whose scores were all there."""
    asked: dict[str, list[Mask]] = field(default_factory=dict)
    """By column, the rows that its filter was asked about; all where it is not here. What the files
    know of other rows is of runs with other rules, and changes nothing about this one."""

    @property
    def num_samples(self) -> int:
        """How many there are in all shards."""
        return sum(map(len, self.keys))

    def path(self, shard: int) -> Path:
        """Return the file of a shard's scores."""
        return self._paths[shard]

    def everything(self) -> list[Mask]:
        """Return the mask of all rows of each shard."""
        return [np.ones(len(keys), bool) for keys in self.keys]

    def columns(self, name: str, left: Sequence[Mask]) -> Columns:
        """Return what one filter said, and the rows to decide about."""
        firsts = np.cumsum([0, *map(len, self.keys)])

        def load(shard: int) -> Column:
            values = self.read(shard, name)
            is_scored = ~np.asarray(values.is_null())
            return Column(
                values,
                left[shard] & is_scored,
                self.keys[shard],
                int(firsts[shard]),
                self._names[shard],
            )

        return Columns(load, len(self.sources))

    def status(self, name: str, shard: int) -> pa.Array:
        """Return the status of each row of a shard by one filter."""
        return self.read(shard, status_name(name))

    def failed(self, name: str, shard: int) -> Mask:
        """Return the rows of a shard that a filter failed on."""
        is_asked = ~np.asarray(self.status(name, shard).is_null())
        return is_asked & np.asarray(self.read(shard, name).is_null())

    def read(self, shard: int, column: str) -> pa.Array:
        """Return a column of values or of status, null where the filter was not asked."""
        # Threads would take longer to begin than a column of one shard to read.
        table = pq.ParquetFile(self.path(shard)).read([column], use_threads=False)
        values = table[column].combine_chunks()
        asked = self.asked.get(column.removesuffix(STATUS))
        if asked is None or asked[shard].all():
            return values
        return values.take(pa.array(np.arange(len(values)), mask=~asked[shard]))

    def __post_init__(self) -> None:
        # A keep-list names a shard, also where a table about it is what is read.
        self._names = relative_names([path.with_suffix(".tar") for path in self.sources])
        self._paths = [self.folder / Path(name).with_suffix(".parquet") for name in self._names]


def status_name(column: str) -> str:
    """Return the name of the column that says how scoring went."""
    return f"{column}{STATUS}"


def open_scores(sources: Sequence[Path], folder: Path) -> ScoredSet:
    """Return the scores of some shards or tables, of which none need be there."""
    return ScoredSet(sources, folder, [keys_of(path) for path in sources])


def score(
    engine: Engine, scored: ScoredSet, filters: Mapping[str, Filter], wanted: Mapping[str, list]
) -> None:
    """Score the wanted rows that have no score yet and write them down.

    Args:
        engine: Where it is done.
        scored: Gets the new scores.
        filters: By column.
        wanted: By column, the mask of rows of each shard.
    """
    work = ScoreShard(dict(filters), {n: part.identity() for n, part in filters.items()})
    tasks = [
        Task(source, scored.path(n), {name: wanted[name][n] for name in filters})
        for n, source in enumerate(scored.sources)
    ]
    scored.asked.update(wanted)
    on_gpu = any(part.models for part in filters.values())
    for spent in engine.run(work, tasks, what="score", on_gpu=on_gpu):
        scored.num_reused += not spent.counts
        for name in spent.counts:
            scored.seconds[name] = scored.seconds.get(name, 0.0) + spent.seconds.get(name, 0.0)
            scored.counts[name] = scored.counts.get(name, 0) + spent.counts[name]


@dataclass(frozen=True)
class ScoreShard:
    """Scores one shard by some filters; what workers run."""

    filters: dict[str, Filter]
    identities: dict[str, str]

    def __call__(self, task: Task) -> Spent:
        """Write the scores of a shard that are wanted and not there yet."""
        origins = {name: self._origin(task.source, name) for name in self.filters}
        keys = keys_of(task.source)
        known = _read(task.target, keys, origins)
        missing = {
            name: mask & np.asarray(known[status_name(name)].is_null())
            for name, mask in task.wanted.items()
        }
        missing = {name: mask for name, mask in missing.items() if mask.any()}
        if not missing and known.pop("is_whole"):
            return Spent({}, {})
        sheet = Sheet(self.filters, missing)
        rows = np.flatnonzero(np.any([*missing.values()], axis=0)).tolist() if missing else []
        if task.source.suffix == ".parquet":
            for some in open_rows(task.source, rows):
                sheet.fill_rows(some)
        else:
            sheet.fill(zip(rows, open_candidates(task.source, rows), strict=True))
        _write(task.target, keys, origins, known, sheet)
        return Spent(sheet.seconds, {name: int(mask.sum()) for name, mask in missing.items()})

    def _origin(self, shard: Path, column: str) -> bytes:
        """Return a hash of what a column follows from.

        The source of a filter is part of it: who changes a filter wants its new numbers.
        """
        part = self.filters[column]
        told = [
            *(origin(shard), shard.name, scoring_options(part), self.identities[column]),
            inspect.getsource(inspect.getmodule(type(part)) or type(part)),
        ]
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest().encode()


def _read(path: Path, keys: Sequence[str], origins: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the columns of an earlier run that are still valid; the others are all null.

    ``is_whole`` says whether every column is there, so that nothing need be written.
    """
    found: dict[str, Any] = {"is_whole": True, "others": []}
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        is_same = table["key"].to_pylist() == list(keys)
    except (OSError, pa.ArrowException, KeyError):
        is_same = False
    if not is_same:
        table = pa.table({"key": keys})
    for name, told in origins.items():
        own = (name, status_name(name))
        is_valid = name in table.column_names and _origin_of(table, name) == told
        found["is_whole"] &= is_valid
        nulls = pa.nulls(len(keys))
        found |= {c: table[c].combine_chunks() if is_valid else nulls for c in own}
    # Columns of other rules stay: who comes back to them need not score again.
    found["others"] = [(f, table[f.name]) for f in table.schema if f.name not in (*found, "key")]
    return found


def _origin_of(table: pa.Table, name: str) -> bytes | None:
    return (table.schema.field(name).metadata or {}).get(ORIGIN)


def _write(
    path: Path, keys: Sequence[str], origins: Mapping[str, bytes], known: dict, sheet: Sheet
) -> None:
    """Write the scores of a shard: what was known, and what is new."""
    fields, arrays = [pa.field("key", pa.string())], [pa.array(keys, pa.string())]
    for name in sorted(origins):
        values, status = sheet.merged(name, known[name], known[status_name(name)])
        fields.append(pa.field(name, values.type, metadata={ORIGIN: origins[name]}))
        fields.append(pa.field(status_name(name), status.type))
        arrays += [values, status]
    for own, column in known["others"]:
        fields.append(own)
        arrays.append(column)
    with whole_file(path) as file:
        table = pa.table(arrays, pa.schema(fields))
        # Of keys, zstd takes half the time and half the space of snappy.
        pq.write_table(table, file, write_page_checksum=True, compression="zstd")
