"""How many samples each shard holds: as stated beside it, else counted once and kept on disk."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from data_pipelines.faults import Faults
from data_pipelines.sources import read_small, url_of
from data_pipelines.tar_index import index_folder, open_index, origin
from vlp.console import progress
from vlp.errors import UserError

SIZES = "sizes.json"
"""open_clip's: ``{"000000.tar": 1000, ...}``."""
COUNTS = "counts.parquet"


class Count(NamedTuple):
    """What is known of a shard without opening it."""

    origin: str
    samples: int
    is_stated: bool
    """Read from a file that says so, not counted from the headers."""
    faults: str = ""
    """What its headers have wrong, as JSON; "" for nothing, and where the count is stated."""


def count_samples(
    shards: Sequence[Path],
) -> tuple[Int64[np.ndarray, "shards"], Bool[np.ndarray, "shards"], Faults]:
    """Return the usable samples of each shard, whether that is stated, and faults of headers.

    A count that is stated goes first: ``sizes.json`` beside the shards, or img2dataset's
    ``000000_stats.json``. What is not stated is counted by the headers, once.
    """
    folders: dict[str, list[int]] = {}
    for number, shard in enumerate(shards):
        folders.setdefault(os.path.dirname(shard), []).append(number)
    counts, faults = np.zeros(len(shards), np.int64), Faults()
    is_stated = np.zeros(len(shards), bool)
    with progress(len(shards), "count") as advance:
        for folder, numbers in folders.items():
            found = _count_folder(Path(folder), [shards[n] for n in numbers], advance)
            counts[numbers] = [count.samples for count in found]
            is_stated[numbers] = [count.is_stated for count in found]
            for count in found:
                if count.faults:
                    faults.merge(json.loads(count.faults))
    return counts, is_stated, faults


def _count_folder(folder: Path, shards: Sequence[Path], advance: Any) -> list[Count]:
    sizes = _stated_sizes(folder, shards[0])
    path = index_folder(shards[0]) / COUNTS
    known = _load(path)
    names = set() if url_of(shards[0]) else set(os.listdir(folder))
    found, is_new, done = [], False, 0
    for number, shard in enumerate(shards):
        if shard.name in sizes:
            found.append(Count("", sizes[shard.name], True))
            continue
        count = known.get(shard.name)
        if not count or count.origin != origin(shard):
            stats = f"{shard.stem}_stats.json"
            count = _stated(folder / stats, shard) if stats in names else _counted(shard)
            known[shard.name] = count
            is_new = True
            advance(number - done)
            done = number
        found.append(count)
    advance(len(shards) - done)
    if is_new:
        _save(known, path)
    return found


def _counted(shard: Path) -> Count:
    index = open_index(shard)
    faults = json.dumps(index.faults.as_dict()) if index.faults else ""
    return Count(origin(shard), len(index), False, faults)


def _stated(stats: Path, shard: Path) -> Count:
    """Return the count of img2dataset's statistics of a shard."""
    try:
        count = int(json.loads(stats.read_bytes())["successes"])
    except (OSError, ValueError, OverflowError, KeyError, TypeError):
        return _counted(shard)
    return Count(origin(shard), count, True) if count >= 0 else _counted(shard)


def _stated_sizes(folder: Path, shard: Path) -> dict[str, int]:
    url = url_of(shard)
    if url:
        found = None if url.startswith("pipe:") else read_small(f"{url.rpartition('/')[0]}/{SIZES}")
    else:
        found = (folder / SIZES).read_bytes() if (folder / SIZES).is_file() else None
    if found is None:
        return {}
    try:
        sizes = {name: int(size) for name, size in json.loads(found).items()}
        if any(size < 0 for size in sizes.values()):
            raise ValueError
        return sizes
    except (ValueError, OverflowError, AttributeError, TypeError):
        raise UserError(
            f'{folder / SIZES} is damaged. Write {{"000000.tar": 1000, ...}}, or remove it.'
        ) from None


def _load(path: Path) -> dict[str, Count]:
    try:
        table = pq.ParquetFile(path).read()
        columns = (table[name].to_pylist() for name in ("shard", *Count._fields))
        return {name: Count(*rest) for name, *rest in zip(*columns, strict=True)}
    except (OSError, pa.ArrowException, KeyError):
        return {}


def _save(known: dict[str, Count], path: Path) -> None:
    """Write the counts for the next time; where nothing can be written, do without."""
    columns = zip(*known.values(), strict=True)
    table = pa.table({"shard": list(known), **dict(zip(Count._fields, columns, strict=True))})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, part)
        part.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
