"""What filters say of every sample, written down: one Parquet file for each shard.

``scores/<shard>.parquet`` has a row for each sample: its key, a column for each filter, and a
status, ``ok`` or ``failed: reason``. The file also says what it was computed from, so that only
another shard or another way to score makes it invalid, never another threshold.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.faults import Faults, SampleFault
from data_pipelines.shards import ShardSet, read
from data_pipelines.tar_index import Entry
from data_pipelines.toy import MARK
from vlp.console import progress
from vlp.image import ImageError
from vlp.types import Sample

BATCH_SIZE = 256
"""Samples that a filter sees at once."""
THRESHOLDS = ("min", "max", "top")
"""Fields of a filter that decide and do not change its number."""
ORIGIN = b"vlp.scored_from"
"""Where a file of scores says what it was computed from."""


@runtime_checkable
class Scorer(Protocol):
    """The half of a filter that looks at samples: a frozen dataclass."""

    def score(self, samples: Sequence[Sample]) -> Sequence[float | str]:
        """Return a number, or a text to compare, for each sample.

        Raises:
            SampleFault: A sample cannot be scored; so does an ImageError. The others of the
                batch are then scored one by one.
        """
        ...


class ShardScores(NamedTuple):
    """The samples of one shard that every filter could score, in the order of the shard."""

    entries: list[Entry]
    columns: dict[str, np.ndarray]
    """By filter, see ``column_name``; one value for each entry."""


@dataclass(frozen=True)
class ScoredSet:
    """The scores of some shards."""

    shards: list[ShardScores]
    failed: Faults
    """Samples that some filter could not score."""
    num_reused: int
    """Shards whose scores were still valid."""


def score_shards(
    shards: ShardSet, scorers: Mapping[str, Scorer], folder: Path, *, earlier: Path
) -> ScoredSet:
    """Score every sample and write a file for each shard below ``folder``.

    Args:
        shards: The samples.
        scorers: Filters by column.
        folder: Where the files go.
        earlier: The same folder of an earlier run; what is valid there is not computed again.
    """
    entries: dict[Path, list[Entry]] = {shard: [] for shard in shards.shards}
    for entry in shards.entries:
        entries[entry.shard].append(entry)
    root = os.path.commonpath([os.path.abspath(shard.parent) for shard in entries])
    scored, failed, num_reused = [], Faults(), 0
    with progress(len(shards), "score") as advance:
        for shard, own in entries.items():
            name = Path(os.path.relpath(shard, root)).with_suffix(".parquet")
            origin = _origin(shard, scorers)
            table = _read_valid(earlier / name, origin, own)
            num_reused += table is not None
            if table is None:
                table = _score_shard(own, scorers, advance)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.replace_schema_metadata({ORIGIN: origin}), folder / name)
            scored.append(_usable(table, own, failed))
    return ScoredSet(scored, failed, num_reused)


def column_name(name: str, scorer: Scorer) -> str:
    """Return the column of a filter: its name, and the options that change its number.

    ``exact_duplicate`` and ``exact_duplicate(by='caption')`` are two columns,
    ``caption_words(min=3)`` and ``caption_words(max=20)`` are one.
    """
    options = [
        f"{option}={value!r}"
        for option, value in scoring_options(scorer).items()
        if value != getattr(type(scorer), option, None)
    ]
    return f"{name}({', '.join(options)})" if options else name


def scoring_options(scorer: Scorer) -> dict[str, Any]:
    """Return the fields that change the number of a filter: all but the thresholds."""
    return {name: value for name, value in vars(scorer).items() if name not in THRESHOLDS}


def _origin(shard: Path, scorers: Mapping[str, Scorer]) -> bytes:
    """Return a hash of what the scores of a shard follow from.

    The source of a filter is part of it: who changes a filter wants its new numbers.
    """
    state = shard.stat()
    told = {
        "shard": [shard.name, state.st_size, state.st_mtime_ns],
        "scorers": {column: _source(scorers[column]) for column in sorted(scorers)},
    }
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest().encode()


def _source(scorer: Scorer) -> str:
    module = inspect.getmodule(type(scorer))
    return inspect.getsource(module or type(scorer))


def _read_valid(path: Path, origin: bytes, entries: Sequence[Entry]) -> pa.Table | None:
    """Return the scores of an earlier run, or None where they are missing or of something else."""
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException):
        return None
    if (table.schema.metadata or {}).get(ORIGIN) != origin:
        return None
    return table if table["key"].to_pylist() == [entry.key for entry in entries] else None


def _score_shard(entries: Sequence[Entry], scorers: Mapping[str, Scorer], advance: Any) -> pa.Table:
    """Return the table of one shard: key, a column for each filter, status."""
    names = sorted(scorers)
    rows = []
    for start in range(0, len(entries), BATCH_SIZE):
        batch = entries[start : start + BATCH_SIZE]
        rows += _score_batch([_read_unmarked(entry) for entry in batch], scorers, names)
        advance(len(batch))
    columns: dict[str, list] = {"key": [entry.key for entry in entries]}
    for number, name in enumerate(names):
        columns[name] = [None if isinstance(row, SampleFault) else row[number] for row in rows]
    columns["status"] = [f"failed: {row}" if isinstance(row, SampleFault) else "ok" for row in rows]
    return pa.table(columns)


def _read_unmarked(entry: Entry) -> Sample | SampleFault:
    """Return a sample without the mark of the toy world, which would tell a filter the answer."""
    try:
        sample = read(entry)
    except SampleFault as fault:
        return fault
    metadata = {name: value for name, value in sample.metadata.items() if name != MARK}
    return replace(sample, metadata=metadata)


def _score_batch(
    samples: Sequence[Sample | SampleFault], scorers: Mapping[str, Scorer], names: Sequence[str]
) -> list[list[float | str] | SampleFault]:
    """Return the values of each sample in the order of the names, or why there are none."""
    rows: list[list[float | str] | SampleFault] = [
        sample if isinstance(sample, SampleFault) else [] for sample in samples
    ]
    for name in names:
        left = [place for place, row in enumerate(rows) if not isinstance(row, SampleFault)]
        batch = [sample for place in left if isinstance(sample := samples[place], Sample)]
        for place, value in zip(left, _values(scorers[name], name, batch), strict=True):
            row = rows[place]
            if isinstance(value, SampleFault):
                rows[place] = value
            elif isinstance(row, list):
                row.append(value)
    return rows


def _values(
    scorer: Scorer, name: str, samples: Sequence[Sample]
) -> list[float | str | SampleFault]:
    """Return a value or a fault for each sample; where a batch fails, sample by sample."""
    if not samples:
        return []
    try:
        values = list(scorer.score(samples))
    except (SampleFault, ImageError) as fault:
        if len(samples) == 1:
            return [SampleFault(str(fault))]
        return [value for sample in samples for value in _values(scorer, name, [sample])]
    assert len(values) == len(samples), f"{name} gave {len(values)} for {len(samples)} samples"
    # A value that is no number differs from itself; it would slip past every threshold.
    return [SampleFault(f"{name} is no number") if v != v else v for v in values]


def _usable(table: pa.Table, entries: Sequence[Entry], failed: Faults) -> ShardScores:
    """Return the rows that have scores; the others are counted under their reason."""
    status = table["status"].to_pylist()
    for entry, state in zip(entries, status, strict=True):
        if state != "ok":
            failed.add(state.removeprefix("failed: "), entry.shard.name, entry.key)
    ok = np.array([state == "ok" for state in status], bool)
    good = table.filter(pa.array(ok))
    columns = {
        name: good[name].to_numpy() for name in table.column_names if name not in ("key", "status")
    }
    return ShardScores([entry for entry, is_ok in zip(entries, ok, strict=True) if is_ok], columns)
