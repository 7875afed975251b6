"""How many samples each shard holds: as stated beside it, else counted once and kept on disk."""

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from data_pipelines.ahead import map_ahead
from data_pipelines.faults import Faults
from data_pipelines.fetch import read_small
from data_pipelines.index_files import index_folder, save_table
from data_pipelines.shard_cache import url_of
from data_pipelines.tar_index import open_index, origin
from vlp.console import progress
from vlp.errors import UserError

SIZES = "sizes.json"
"""open_clip's: ``{"000000.tar": 1000, ...}``."""
COUNTS = "counts.parquet"
MANY = 32
"""Shards from which on several processes read headers."""


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
    found = {name: Count("", size, True) for name, size in _stated_sizes(shards[0]).items()}
    path = index_folder(shards[0]) / COUNTS
    known = _load(path)
    for shard in shards:
        count = known.get(shard.name)
        if count and shard.name not in found:
            now = _origin_of_stated(shard) if count.is_stated else origin(shard)
            if count.origin == now:
                found[shard.name] = count
    new = [shard for shard in shards if shard.name not in found]
    advance(len(shards) - len(new))
    if new:
        for shard, count in zip(new, _counted_each(folder, new), strict=True):
            found[shard.name] = known[shard.name] = count
            advance()
        _save(known, path)
    return [found[shard.name] for shard in shards]


def _counted_each(folder: Path, shards: Sequence[Path]) -> Iterator[Count]:
    """Yield the counts of shards, by threads where they are fetched, by processes where many."""
    if url_of(shards[0]):
        has_stats = _read_stats(shards[0]) is not None  # one is asked for: most sources have none
        yield from map_ahead(_stated if has_stats else _counted, shards)
        return
    names = set(os.listdir(folder))
    has_stats = any(_stats_path(shard).name in names for shard in shards)
    if has_stats or len(shards) < MANY:
        yield from map(_stated if has_stats else _counted, shards)
        return
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_counted, shards, chunksize=4)


def _counted(shard: Path) -> Count:
    index = open_index(shard)
    faults = json.dumps(index.faults.as_dict()) if index.faults else ""
    return Count(origin(shard), len(index), False, faults)


def _stated(shard: Path) -> Count:
    """Return the count of img2dataset's statistics of a shard; without them it is counted."""
    try:
        count = int(json.loads(_read_stats(shard) or b"")["successes"])
    except (OSError, ValueError, OverflowError, KeyError, TypeError):
        return _counted(shard)
    return Count(_origin_of_stated(shard), count, True) if count >= 0 else _counted(shard)


def _read_stats(shard: Path) -> bytes | None:
    url, path = url_of(shard), _stats_path(shard)
    if url:
        if url.startswith("pipe:"):
            return None
        try:
            return read_small(_beside(url, path.name))
        except UserError:  # the shard itself is asked for next, and named where that fails
            return None
    return path.read_bytes() if path.is_file() else None


def _stats_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.stem}_stats.json")


def _origin_of_stated(shard: Path) -> str:
    """Return what changes when a shard changes, or the local file that states its count."""
    try:
        state = _stats_path(shard).stat()
    except OSError:
        return origin(shard)
    return f"{origin(shard)} {state.st_size} {state.st_mtime_ns}"


def _stated_sizes(shard: Path) -> dict[str, int]:
    """Return what ``sizes.json`` beside a shard says."""
    folder = shard.parent
    url = url_of(shard)
    if url:
        found = None if url.startswith("pipe:") else read_small(_beside(url, SIZES))
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
        if url:  # many servers answer with a page where there is no such file
            return {}
        raise UserError(
            f'{folder / SIZES} is damaged. Write {{"000000.tar": 1000, ...}}, or remove it.'
        ) from None


def _beside(url: str, name: str) -> str:
    """Return the URL of a file in the same folder, with the same query."""
    place, mark, query = url.partition("?")
    return f"{place.rpartition('/')[0]}/{name}{mark}{query}"


def _load(path: Path) -> dict[str, Count]:
    try:
        table = pq.ParquetFile(path).read()
        columns = (table[name].to_pylist() for name in ("shard", *Count._fields))
        return {name: Count(*rest) for name, *rest in zip(*columns, strict=True)}
    except (OSError, pa.ArrowException, KeyError):
        return {}


def _save(known: dict[str, Count], path: Path) -> None:
    columns = zip(*known.values(), strict=True)
    table = pa.table({"shard": list(known), **dict(zip(Count._fields, columns, strict=True))})
    save_table(table, path)
