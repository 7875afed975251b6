"""The samples of shards, and where their features are."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64

from data_pipelines.captions import caption_key
from data_pipelines.curation.encoded import unit
from data_pipelines.faults import SampleFault
from data_pipelines.mining.options import MineOptions
from data_pipelines.plan import hash63
from data_pipelines.shards import ShardSet, read
from data_pipelines.sources import relative_names
from data_pipelines.tar_index import Entry, open_index
from vlp.errors import UserError
from vlp.features import read_metadata, stack
from vlp.index import BLOCK, Matrix

MAY_LACK = 0.05
"""Share of the samples that may have no features: pictures that could not be read."""


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Some rows of features, or of the mean of several kinds, at unit length."""

    kinds: Sequence[Matrix]
    rows: Int64[np.ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | np.ndarray) -> Float32[np.ndarray, "_ dim"]:
        wanted = self.rows[rows]
        found = [unit(np.asarray(kind[wanted], np.float32)) for kind in self.kinds]
        return found[0] if len(found) == 1 else unit(np.add(*found))


class Pool(NamedTuple):
    """What is mined: samples of shards and their features."""

    features: dict[str, Matrix]
    """``image`` and ``text``, rows of any length."""
    row: Int64[np.ndarray, "samples"]
    """Of each sample; -1 where it has none."""
    group: Int32[np.ndarray, "samples"]
    """Equal where samples are never each other's negatives."""

    def unit_rows(self, kinds: Sequence[str], samples: Int64[np.ndarray, "_"]) -> UnitRows:
        """Return the features of some samples, or the mean of several kinds of them."""
        return UnitRows([self.features[kind] for kind in kinds], self.row[samples])


def open_pool(features: Path, shards: ShardSet, options: MineOptions) -> Pool:
    """Return the samples of shards with the features of a folder.

    Raises:
        UserError: Features are missing or damaged, or those of too many samples.
    """
    held: dict[str, Matrix] = {kind: stack(features, kind) for kind in sorted(options.needs)}
    table = read_metadata(features)
    lengths = {len(table), *map(len, held.values())}
    if len(lengths) > 1:
        raise UserError(
            f"{features} has {len(table)} rows of metadata, and features of "
            f"{' and '.join(f'{len(rows)} {kind}s' for kind, rows in held.items())}: they must be "
            f"as many. Run `vlp embed` again."
        )
    row = _rows_of(table, shards, features)
    row[~_are_usable(held)[row]] = -1
    lacking = np.flatnonzero(row < 0)
    if len(lacking) > MAY_LACK * len(row):
        raise UserError(
            f"{len(lacking)} of {len(row)} samples have no features in {features}, such as "
            f"{entry_of(shards, int(lacking[0])).key}. Run `vlp embed` on these shards."
        )
    return Pool(held, row, _groups(table, row, shards, options))


def _rows_of(table: pa.Table, shards: ShardSet, features: Path) -> Int64[np.ndarray, "samples"]:
    """Return the row of each sample's features by its key, and by its shard where keys recur."""
    keys = table["key"].to_pylist()
    places = {key: row for row, key in enumerate(keys)}
    if len(places) == len(keys):
        own = (places.get(key, -1) for shard in shards.shards for key in open_index(shard).keys)
        return np.fromiter(own, np.int64)
    files = table["shard"].to_pylist()
    if None in files:
        raise UserError(
            f"{features} has {len(keys) - len(places)} keys twice, and does not say of which shard "
            f"they are. Run `vlp embed` on these shards."
        )
    known = sorted(set(files))
    name = dict(zip(known, relative_names([Path(file) for file in known]), strict=True))
    by_shard = {
        (name[file], key): row for row, (file, key) in enumerate(zip(files, keys, strict=True))
    }
    own = (
        by_shard.get((shard_name, key), -1)
        for shard, shard_name in zip(shards.shards, relative_names(shards.shards), strict=True)
        for key in open_index(shard).keys
    )
    return np.fromiter(own, np.int64)


def _are_usable(held: dict[str, Matrix]) -> np.ndarray:
    """Return bool [rows + 1], whether all features of a row are finite and not 0; at last False."""
    count = len(next(iter(held.values())))
    is_usable = np.ones(count + 1, bool)
    is_usable[count] = False
    for rows in held.values():
        for start in range(0, count, BLOCK):
            block = np.asarray(rows[start : start + BLOCK], np.float32)
            is_usable[start : start + len(block)] &= np.isfinite(block).all(1) & block.any(1)
    return is_usable


def _groups(
    table: pa.Table, row: Int64[np.ndarray, "samples"], shards: ShardSet, options: MineOptions
) -> Int32[np.ndarray, "samples"]:
    """Return the group of each sample: of its features' caption or class, or its picture."""
    if options.group == "none":
        return np.arange(len(row), dtype=np.int32)
    if options.group == "image":
        hashes = [_of_picture(entry) for entry in _entries(shards)]
        return dense(hashes)
    told: list[str | None] = table[
        "caption" if options.group == "caption" else "metadata"
    ].to_pylist()
    group = _of_caption if options.group == "caption" else _of_label(options.label_key)
    hashes = [
        group(told[found] or "") if found >= 0 else _unread(entry_of(shards, sample), options)
        for sample, found in enumerate(row.tolist())
    ]
    if not any(one is not None for one in hashes):
        raise UserError(
            f"No sample has {options.label_key} in its metadata. Write after --label-key which "
            f"field holds the class."
        )
    return dense(hashes)


def dense(hashes: Sequence[int | None]) -> Int32[np.ndarray, "samples"]:
    """Return numbers from 0 that are equal where hashes are; None is equal to nothing."""
    values = np.array(
        [~place if one is None else one for place, one in enumerate(hashes)], np.int64
    )
    return np.unique(values, return_inverse=True)[1].astype(np.int32)


def _of_caption(caption: str) -> int:
    return hash63(caption_key(caption))


def _of_label(label_key: str) -> Callable[[str], int | None]:
    def of(metadata: str) -> int | None:
        fields = json.loads(metadata or "{}")
        return hash63(str(fields[label_key])) if label_key in fields else None

    return of


def _of_picture(entry: Entry) -> int | None:
    try:
        return hash63(read(entry, needs_caption=False).image)
    except SampleFault:
        return None


def _unread(entry: Entry, options: MineOptions) -> int | None:
    """Return the group of a sample without features."""
    try:
        sample = read(entry, needs_image=False)
    except SampleFault:
        return None
    if options.group == "caption":
        return _of_caption(sample.text)
    return _of_label(options.label_key)(json.dumps(sample.metadata))


def _entries(shards: ShardSet) -> Iterator[Entry]:
    for shard in shards.shards:
        yield from open_index(shard)


def entry_of(shards: ShardSet, sample: int) -> Entry:
    """Return where a sample lies, by its number in the set."""
    ends = np.cumsum(shards.counts)
    shard = int(np.searchsorted(ends, sample, side="right"))
    return open_index(shards.shards[shard])[sample - int(ends[shard] - shards.counts[shard])]
