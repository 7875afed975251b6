"""Shards of URLs and commands, fetched ahead of use by threads of the process that reads."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from data_pipelines.plan import VISIT, WINDOW, Plan, Row
from data_pipelines.shard_cache import ensure, url_of
from data_pipelines.shards import ShardSet
from data_pipelines.tar_index import open_index

FETCHES = 4
"""Shards that a process fetches at a time."""


@dataclass(frozen=True, eq=False)
class FetchAhead:
    """Fetches what a reader will need soon."""

    sources: Sequence[ShardSet]
    plan: Plan

    def __call__(self, positions: range) -> None:
        """Start to fetch the shards of these positions, and those a window further on."""
        if not self._is_remote:
            return
        ahead = range(
            positions.start + self.plan.lanes * WINDOW,
            positions.stop + self.plan.lanes * WINDOW,
            positions.step,
        )
        for place in map(self.plan.place, [*positions, *ahead]):
            shard = self.sources[place.source].shards[place.shard]
            is_counted = isinstance(self.plan.rows[place.source], Row)
            turn = place.epoch if is_counted else place.epoch // (self.plan.lanes * VISIT)
            # Once in an epoch, since the cache may have made room for others meanwhile.
            if self._fetched.get(shard, -1) < turn:
                self._fetched[shard] = turn
                self._wanted.put(shard)

    @cached_property
    def _is_remote(self) -> bool:
        return any(url_of(shard) for source in self.sources for shard in source.shards)

    @cached_property
    def _fetched(self) -> dict[Path, int]:
        return {}

    @cached_property
    def _wanted(self) -> SimpleQueue:
        """The shards to fetch; the threads that do end with the process, whatever is left."""
        wanted = SimpleQueue()
        for _ in range(FETCHES):
            Thread(target=_fetch_each, args=(wanted,), daemon=True).start()
        return wanted


def _fetch_each(wanted: SimpleQueue) -> None:
    while True:
        shard = wanted.get()
        with contextlib.suppress(Exception):  # met again, and told, where the shard is read
            ensure(shard)
            open_index(shard)
