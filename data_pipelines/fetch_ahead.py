"""Shards of URLs and commands, fetched ahead of use by threads of the process that reads them.

Of each lane of the plan the shards of its window and of the next one are fetched and kept in the
cache. So after a stop at a checkpoint, with the cache lost, all workers of a machine fetch at most
``shards_at_a_time`` shards again (over the end of an epoch those of one more window), and each of
them its share of these where their number divides that of the lanes. Shards that are still in the
cache are not fetched again.
"""

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO

import numpy as np

from data_pipelines.fetch import size_of
from data_pipelines.mining.row import MinedRow
from data_pipelines.plan import VISIT, WINDOW, EndlessRow, Place, Plan, Resampled, Row
from data_pipelines.shard_cache import cap_bytes, hold, url_of
from data_pipelines.shards import ShardSet
from data_pipelines.tar_index import open_index
from vlp.console import warn

FETCHES = 4
"""Shards that a process fetches at a time."""
MOST_HELD = 256
"""Shards that a process holds in the cache: each takes an open file, of which there are 1,024."""
PARTS_AHEAD = 2
"""Batches that a worker makes ahead of use, beside the one that is used."""
THREAD = "fetch ahead"
SIZES_ASKED = 4
"""Shards of a source whose size is asked for, to estimate that of all."""


@dataclass(eq=False)
class FetchAhead:
    """Fetches what a reader will need up to a window on, and holds it in the cache till it is read.

    Called with the positions of each part of a batch, in order.
    """

    sources: Sequence[ShardSet]
    plan: Plan
    _needed: dict[Path, int] = field(default_factory=dict)
    """Shards, and the last position known to be in each."""
    _held: dict[Path, BinaryIO] = field(default_factory=dict)
    _known_from: int | None = None
    """Position from which on everything has been looked at ahead."""

    def __call__(self, positions: range) -> None:
        """Start to fetch what is to be read soon; let go of what has been read."""
        if not self._is_remote:
            return
        # Nothing that is fetched lies more than a window beyond what the trainer has seen.
        whole, batch = self.plan.lanes * WINDOW, self.plan.batch_size
        distance = max(batch, whole - (PARTS_AHEAD + 1) * batch)
        ahead = range(positions.start + distance, positions.stop + distance, positions.step)
        if self._known_from is None:
            self._known_from = ahead.start
        if positions.start < self._known_from:
            for position in positions:
                self._need(self.plan.place(position), self._known_from)
        for position in ahead:
            self._need(self.plan.place(position), position)
        for shard in [shard for shard, last in self._needed.items() if last < positions.start]:
            del self._needed[shard]
        for shard in [shard for shard in [*self._held] if shard not in self._needed]:
            self._held.pop(shard).close()

    def _need(self, place: Place, position: int) -> None:
        shard = self.sources[place.source].shards[place.shard]
        if shard not in self._needed and url_of(shard):
            self._wanted.put(shard)
        self._needed[shard] = max(position, self._needed.get(shard, 0))

    @cached_property
    def _is_remote(self) -> bool:
        return any(url_of(shard) for source in self.sources for shard in source.shards)

    @cached_property
    def _wanted(self) -> SimpleQueue:
        """The shards to fetch; the threads that do end with this, or with the process."""
        wanted = SimpleQueue()
        for _ in range(FETCHES):
            arguments = (wanted, self._held)
            Thread(target=_fetch_each, name=THREAD, args=arguments, daemon=True).start()
        weakref.finalize(self, _end, wanted)
        return wanted


def shards_at_a_time(plan: Plan) -> list[int]:
    """Return of each row of the plan the most shards that are needed at a time.

    They are those of each lane's window and the next; of a set that is shuffled whole, as for mined
    batches, all. With a keep-list this is an estimate.
    """
    return [_most_at_a_time(row) for row in plan.rows]


def warn_of_small_cache(sources: Sequence[ShardSet], plan: Plan) -> None:
    """Say so where the cache cannot hold what is needed at a time: shards are then fetched again.

    The size of shards is estimated from a few of them.
    """
    needed = [
        count * _mean_bytes(source)
        for count, source in zip(shards_at_a_time(plan), sources, strict=True)
    ]
    cap = cap_bytes()
    if sum(needed) > cap:
        warn(
            f"the cache of {cap / 1e9:.2g} GB is smaller than the {sum(shards_at_a_time(plan))} "
            f"shards that are read at a time: some will be fetched again and again. Set "
            f"VLP_CACHE_GB={1.1 * sum(needed) / 1e9:.2g}, or write fewer --data.lanes."
        )


def _most_at_a_time(row: EndlessRow) -> int:
    if isinstance(row, Resampled):
        return _most_drawn(row)
    if isinstance(row, MinedRow):
        return int((row.counts > 0).sum())
    assert isinstance(row, Row)
    return _most_in_windows(row)


def _most_in_windows(row: Row) -> int:
    counts = row.pass_counts(0)
    counts = np.sort(counts[counts > 0])
    if counts.sum() <= row.lanes * WINDOW:
        return len(counts)
    # Of the samples of two windows one at least is in the first shard and one in the last.
    between = int(np.searchsorted(np.cumsum(counts), 2 * WINDOW - 2, side="right"))
    return min(len(counts), row.lanes * (between + 2))


def _most_drawn(row: Resampled) -> int:
    return min(row.num_shards, row.lanes * (-(-WINDOW // VISIT) + 1))


def _mean_bytes(source: ShardSet) -> float:
    """Return the mean size of the shards that are elsewhere, or 0 where nobody knows."""
    remote = [shard for shard in source.shards if url_of(shard)]
    some = remote[:: max(1, len(remote) // SIZES_ASKED)][:SIZES_ASKED]
    sizes = [size for shard in some if (size := _size(shard))]
    return sum(sizes) / len(sizes) if sizes else 0


def _size(shard: Path) -> int | None:
    try:
        return shard.stat().st_size
    except FileNotFoundError:
        return size_of(url_of(shard) or "")


def _fetch_each(wanted: SimpleQueue, held: dict[Path, BinaryIO]) -> None:
    while shard := wanted.get():
        with contextlib.suppress(Exception):  # met again, and told, where the shard is read
            file = hold(shard)
            open_index(shard)
            if file and len(held) < MOST_HELD:
                held[shard] = file


def _end(wanted: SimpleQueue) -> None:
    while not wanted.empty():
        wanted.get()
    for _ in range(FETCHES):
        wanted.put(None)
