"""Which samples of shards are read, and how often in an epoch, without rewriting the shards."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, Integer

from data_pipelines.ahead import map_ahead
from data_pipelines.shards import ShardSet
from data_pipelines.sources import relative_names
from data_pipelines.tar_index import open_index
from data_pipelines.uids import UID, open_uids, sorted_pairs, uid_pairs
from vlp.console import say
from vlp.errors import UserError, first_line

FILE = "keep.parquet"
UIDS = "keep.npy"
MOST = 100
"""Copies of a sample in an epoch."""
COLUMNS = ("shard", "key", "copies")


def write_keep_list(
    sources: Sequence[Path],
    keys: Sequence[Sequence[str]],
    copies: Sequence[Integer[np.ndarray, "_"]],
    folder: Path,
) -> int:
    """Write the samples that are kept, and return their number, copies counted.

    A row of ``keep.parquet`` is the shard (its path below the folder of all of them), the key and
    ``copies``, how often the sample stands in an epoch: another program may write other numbers
    there. Where every one has a uid, ``keep.npy`` is the list of them in DataComp's form, sorted.

    Args:
        sources: Shards; or tables about them, named as the shards are.
        keys: Of each shard, in its order.
        copies: How often each sample is kept.
        folder: Where the files go.
    """
    names = relative_names([path.with_suffix(".tar") for path in sources])
    shards, rows, times, uids = [], [], [], []
    for n, own in enumerate(copies):
        kept = np.flatnonzero(own)
        shards += [names[n]] * len(kept)
        rows += [keys[n][row] for row in kept.tolist()]
        times += own[kept].tolist()
        if uids is not None and len(kept):
            found = _uids_of(sources[n], keys[n], kept)
            uids = None if found is None else [*uids, np.repeat(found, own[kept])]
    columns = zip(COLUMNS, (shards, rows, pa.array(times, pa.int64())), strict=True)
    pq.write_table(pa.table(dict(columns)), folder / FILE)
    if uids:
        np.save(folder / UIDS, sorted_pairs(np.concatenate(uids)))
    return sum(times)


def _uids_of(source: Path, keys: Sequence[str], rows: np.ndarray) -> np.ndarray | None:
    """Return the uids of some rows of a shard or a table, or None where one has none."""
    if source.suffix == ".parquet":
        file = pq.ParquetFile(source)
        if {"key", "uid"} <= set(file.schema_arrow.names):
            keys = file.read(columns=["uid"], use_threads=False)["uid"].to_pylist()
        with contextlib.suppress(ValueError):
            return uid_pairs([str(keys[row]) for row in rows.tolist()])
        return None
    uids, has_uid = open_uids(source)
    return uids[rows] if has_uid[rows].all() else None


def read_copies(path: str, shards: ShardSet) -> list[Int64[np.ndarray, "_"]]:
    """Return how often each sample of each shard stands in an epoch, by a keep-list.

    Args:
        path: ``keep.parquet`` or the folder that holds it; ``copies`` may be left out for 1 each.
            Or DataComp's ``.npy`` of uids, where one that stands twice is read twice.
        shards: The shards that the list was made of, wherever they are now.

    Raises:
        UserError: The list cannot be read, or names samples that the shards do not hold; of uids
            only if there is none, since many of DataComp's pictures are gone from the web.
    """
    read_list = _copies_by_uid if path.endswith(".npy") else _copies_by_key
    copies = read_list(path, shards)
    if not any(own.any() for own in copies):
        raise UserError(f"{path} keeps no sample at all.")
    return copies


def _copies_by_key(path: str, shards: ShardSet) -> list[Int64[np.ndarray, "_"]]:
    listed = KeyList(Path(path))
    names = relative_names(shards.shards)
    copies = [
        listed.copies(name, open_index(shard).keys)
        for shard, name in zip(shards.shards, names, strict=True)
    ]
    if left := listed.left():
        raise UserError(f"{left} Name the shards it was made of.")
    return copies


def _copies_by_uid(path: str, shards: ShardSet) -> list[Int64[np.ndarray, "_"]]:
    listed = UidList(Path(path))
    copies = [listed.copies(*found) for found in map_ahead(open_uids, shards.shards)]
    say(f"{listed.is_met.sum()} of the {len(listed.uids)} uids in {path} are in the shards.")
    return copies


class KeyList:
    """A ``keep.parquet`` that is looked up shard by shard."""

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, listed_copies(path)
        self._total = sum(map(len, self._left.values()))

    def copies(self, shard: str, keys: Sequence[str]) -> Int64[np.ndarray, "keys"]:
        """Return how often each sample of a shard is kept; of equal keys the first."""
        left = self._left.get(shard, {})
        return np.array([left.pop(key, 0) for key in keys], np.int64)

    def left(self) -> str:
        """Return a sentence about the samples of the list that no shard had; "" for none."""
        missing = [(shard, key) for shard, left in self._left.items() for key in left]
        if not missing:
            return ""
        return (
            f"{self._path} keeps {len(missing)} of its {self._total} samples from shards that do "
            f"not hold them, such as {missing[0][1]} of {missing[0][0]}."
        )


class UidList:
    """A DataComp list that is looked up shard by shard; it means the first sample of a uid."""

    def __init__(self, path: Path) -> None:
        self.uids, self._times = listed_uids(path)
        self.is_met = np.zeros(len(self.uids), bool)

    def copies(self, uids: np.ndarray, has_uid: np.ndarray) -> Int64[np.ndarray, "uids"]:
        """Return how often each sample of a shard is kept."""
        copies = np.zeros(len(uids), np.int64)
        at = np.minimum(np.searchsorted(self.uids, uids), max(0, len(self.uids) - 1))
        matches = np.flatnonzero(has_uid & (self.uids[at] == uids)) if len(self.uids) else ()
        for row in matches:
            if not self.is_met[at[row]]:
                self.is_met[at[row]], copies[row] = True, self._times[at[row]]
        return copies


def listed_uids(path: Path) -> tuple[np.ndarray, Int64[np.ndarray, "uids"]]:
    """Return the uids of a DataComp list, ascending, and how often each stands there.

    Raises:
        UserError: It cannot be read, or one stands there more than ``MOST`` times.
    """
    try:
        uids = np.load(path)
        if uids.ndim != 1 or uids.dtype.newbyteorder("=") != UID:
            raise ValueError(f"it holds {uids.ndim} dimensions of {uids.dtype}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"Cannot read the keep-list {path}: {_reason(error)}. A list of uids is an array of "
            f"one dimension of pairs, numpy's dtype \"u8,u8\", as DataComp's are."
        ) from None
    found, times = np.unique(uids.astype(UID), return_counts=True)
    if len(times) and times.max() > MOST:
        raise UserError(f"{path} keeps a uid {times.max()} times. Write it at most {MOST} times.")
    return found, times


def _reason(error: Exception) -> str:
    # numpy takes any other file for a pickle, and tells how to open it against all caution.
    return "it is no .npy file" if "pickle" in str(error) else first_line(error)


def listed_copies(path: Path) -> dict[str, dict[str, int]]:
    """Return the copies by shard and key of a ``keep.parquet``, or of the folder that holds one.

    Raises:
        UserError: It cannot be read.
    """
    path = path / FILE if path.is_dir() else path
    try:
        table = pq.ParquetFile(path).read()
        names, keys = (table[name].to_pylist() for name in COLUMNS[:2])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(
            f"Cannot read the keep-list {path}: {str(error).splitlines()[0]}. It is a Parquet file "
            f"with the columns shard, key and copies; `vlp filter --keep-list` writes one."
        ) from None
    has_copies = "copies" in table.column_names
    copies = table["copies"].to_pylist() if has_copies else [1] * len(keys)
    found: dict[str, dict[str, int]] = {}
    for name, key, count in zip(names, keys, copies, strict=True):
        if name is None or key is None:
            raise UserError(f"The keep-list {path} has a row without a shard or a key.")
        own = found.setdefault(name, {})
        is_number = isinstance(count, int | float)
        total = own.get(key, 0) + count if is_number else count
        if not is_number or not (0 <= count <= total <= MOST) or count % 1:
            raise UserError(
                f"{path} keeps {key} of {name} {total} times. Write a whole number, 0 to {MOST}."
            )
        own[key] = int(total)
    return found
