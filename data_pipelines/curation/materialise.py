"""From decisions to clean shards: files copied as they are, in a seeded order, or a keep-list."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.curation.blur import Blur
from data_pipelines.curation.candidates import hash64
from data_pipelines.curation.decide import Decision
from data_pipelines.curation.scores import ScoredSet
from data_pipelines.engine import Engine
from data_pipelines.shards import copied_members, read_members, safe_key, write_shard
from data_pipelines.tar_index import Entry, TarIndex, open_index, origin
from vlp.manifest import MANIFEST
from vlp.output import whole_file, write_json

WINDOW = 65_536
"""Samples that are shuffled together; they come from few shards, so an output shard does, too."""
SIZES = "sizes.json"
"""open_clip's: samples of each shard, by its name."""


class Row(NamedTuple):
    """A sample to copy."""

    shard: int
    row: int
    number: int
    """1 for the first of a key, 2 for the second, whose key becomes ``key-2``."""


class Task(NamedTuple):
    """A shard to write."""

    target: Path
    rows: list[Row]

    def __str__(self) -> str:
        return self.target.name


class Written(NamedTuple):
    """What is in a shard."""

    name: str
    samples: int
    bytes: int
    sha256: str
    blurred: int
    """Pictures with boxes."""


def materialise(
    engine: Engine,
    scored: ScoredSet,
    decision: Decision,
    folder: Path,
    *,
    samples_per_shard: int,
    seed: int,
    blur: Blur | None = None,
) -> list[Written]:
    """Write what is kept to ``000000.tar`` and on, with ``sizes.json`` and ``manifest.json``.

    All shards but the last hold ``samples_per_shard`` samples. The order is drawn from the seed:
    shards are shuffled, and their samples in windows of ``WINDOW``. The files of a sample are
    copied byte for byte, but for pictures that ``blur`` changes. A shard that is there already is
    whole, and is not written again.
    """
    rows = _numbered(list(_shuffled(decision.copies, seed)), scored.keys)
    starts = range(0, len(rows), samples_per_shard)
    tasks = [
        Task(folder / f"{n:06d}.tar", rows[start : start + samples_per_shard])
        for n, start in enumerate(starts)
    ]
    written = list(engine.run(CopyShard(tuple(scored.sources), blur), tasks, what="write"))
    write_json(folder / SIZES, {one.name: one.samples for one in written})
    files = {one.name: {"bytes": one.bytes, "sha256": one.sha256} for one in written}
    write_json(folder / MANIFEST, {"files": files})
    return written


@dataclass(frozen=True)
class CopyShard:
    """Writes one shard of samples of others; what workers run."""

    sources: tuple[Path, ...]
    blur: Blur | None = None

    def __call__(self, task: Task) -> Written:
        """Write a shard that is not there yet, and return what is in it."""
        if not task.target.exists():
            with whole_file(task.target) as file:
                write_shard(self._members(task.rows), file)
        with task.target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = task.target.stat().st_size
        blurred = self._num_blurred(task.rows)
        return Written(task.target.name, len(task.rows), size, digest, blurred)

    def _members(self, rows: Sequence[Row]) -> Iterator[dict[str, str | bytes]]:
        for row, entry in zip(rows, self._entries(rows), strict=True):
            members = copied_members(entry, _key(entry.key, row.number))
            yield self.blur(members, _place(entry)) if self.blur else members

    def _num_blurred(self, rows: Sequence[Row]) -> int:
        """Return how many pictures have boxes, also in a shard that an earlier run wrote."""
        if not self.blur:
            return 0
        found = ((read_members(e, ("json",)), _place(e)) for e in self._entries(rows))
        return sum(bool(self.blur.boxes(members, place)) for members, place in found)

    def _entries(self, rows: Sequence[Row]) -> Iterator[Entry]:
        shards = {row.shard: self.sources[row.shard] for row in rows}
        indexes = {n: _index(shard, origin(shard)) for n, shard in shards.items()}
        return (indexes[row.shard][row.row] for row in rows)


def decision_hash(sources: Sequence[Path], decision: Decision, *options: object) -> str:
    """Return 16 hex digits that say which shards a decision and options lead to."""
    told = [*((str(source), origin(source)) for source in sources), *options]
    digest = hashlib.sha256(json.dumps(told, default=str).encode())
    for copies in decision.copies:
        digest.update(copies.tobytes())
    return digest.hexdigest()[:16]


def _shuffled(copies: Sequence[np.ndarray], seed: int) -> Iterator[tuple[int, int]]:
    """Yield (shard, row) of what is kept, each as often as it is, in the order of the seed."""
    window: list[np.ndarray] = []
    order = np.random.default_rng([seed, 0]).permutation(len(copies)).tolist()
    for place, shard in enumerate(order):
        rows = np.repeat(np.arange(len(copies[shard])), copies[shard])
        window.append(np.stack([np.full(len(rows), shard), rows], axis=1))
        if sum(map(len, window)) >= WINDOW or place == len(order) - 1:
            every = np.random.default_rng([seed, 1, place]).permutation(np.concatenate(window))
            yield from map(tuple, every.tolist())
            window = []


def _numbered(places: Sequence[tuple[int, int]], keys: Sequence[Sequence[str]]) -> list[Row]:
    """Return rows whose keys are unique in the whole set: the second of a key has number 2.

    Only hashes of keys are held, and only keys that are there several times are counted.
    """
    hashes = np.array([hash64(safe_key(keys[n][row])) for n, row in places], np.uint64)
    values, counts = np.unique(hashes, return_counts=True)
    numbers = dict.fromkeys(values[counts > 1].tolist(), 0)
    taken = set(values.tolist()) if numbers else set()
    rows = []
    for (n, row), value in zip(places, hashes.tolist(), strict=True):
        number = 1
        if value in numbers:
            number = numbers[value] + 1
            while number > 1 and hash64(_key(keys[n][row], number)) in taken:
                number += 1
            numbers[value] = number
        rows.append(Row(n, row, number))
    return rows


def _place(entry: Entry) -> str:
    return f"{entry.shard.name}, {entry.key}"


def _key(key: str, number: int) -> str:
    return safe_key(key) if number == 1 else f"{safe_key(key)}-{number}"


@lru_cache(maxsize=64)
def _index(shard: Path, told: str) -> TarIndex:
    """Return the index of a shard that its origin tells from what lay there before."""
    return open_index(shard)
