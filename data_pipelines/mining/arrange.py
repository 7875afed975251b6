"""The order of one epoch with hard batches: what a batch needs of one kind, and none that conflict.

A batch that an epoch shares with the next has no hard part: its two halves are drawn first, each
from its epoch, and the later one does not meet the earlier.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from data_pipelines.mining.conflicts import Conflicts

PASSES = 4
"""Times that is tried to part those that meet: exchanges open ways for others."""
TRIES = 32
"""Entries drawn that a conflicting one might change places with, before all are looked at."""


class Span(NamedTuple):
    """The positions of an epoch, or of what is left of it, cut where batches begin."""

    start: int
    stop: int
    batch_size: int

    @property
    def head(self) -> int:
        """Positions that belong to a batch of the epoch before."""
        return min(-self.start % self.batch_size, self.stop - self.start)

    @property
    def tail(self) -> int:
        """Positions of the batch that the next epoch goes on with."""
        return (self.stop - self.start - self.head) % self.batch_size

    @property
    def num_batches(self) -> int:
        """Batches that are wholly of this epoch."""
        return (self.stop - self.start - self.head) // self.batch_size

    @property
    def starts(self) -> range:
        """Where these begin."""
        first = self.start + self.head
        return range(first, first + self.num_batches * self.batch_size, self.batch_size)


def arranged(
    conflicts: Conflicts,
    component: Int32[np.ndarray, "entries"],
    piece: Int32[np.ndarray, "entries"],
    batch: Int32[np.ndarray, "entries"],
    entries: Int64[np.ndarray, "own"],
    span: Span,
    rng: np.random.Generator,
) -> Int32[np.ndarray, "own"]:
    """Return entries in the order of whole batches, the hard part of each first, piece by piece.

    Args:
        conflicts: Of all entries.
        component: What hangs together by conflicts.
        piece: What is alike has the same number; -1 is like nothing.
        batch: Of entries that are in a hard part; -1 for those that are to be dealt, which get
            theirs here.
        entries: As many as the whole batches hold.
        span: The positions.
        rng: Draws who goes where.
    """
    is_filler = batch < 0
    size, number = span.batch_size, span.num_batches
    filler = entries[is_filler[entries]]
    free = size - np.bincount(batch[entries][~is_filler[entries]], minlength=number)
    # Like cards: what hangs together by conflicts comes to lie in different batches.
    own = component[filler]
    lots = rng.random(int(component.max()) + 1)[own]
    filler = filler[np.lexsort((rng.random(len(own)), conflicts.group[filler], own, lots))]
    slots = np.repeat(np.arange(number), free)
    turn = np.arange(len(slots)) - np.repeat(np.cumsum(free) - free, free)
    batch[filler] = slots[np.lexsort((rng.permutation(number)[slots], turn))]
    rank = np.empty(len(batch), np.int64)
    rank[np.lexsort((rng.random(len(batch)), piece, is_filler))] = np.arange(len(batch))
    order = entries[np.lexsort((rank[entries], batch[entries]))].astype(np.int32)
    place = np.full(len(batch), -1, np.int32)
    place[order] = np.arange(len(order))
    exchange = _Exchange(conflicts, piece, batch, is_filler, order, place, size, rng)
    for _ in range(PASSES):
        if not exchange.part(rank):
            break
    return order


@dataclass(frozen=True, eq=False)
class _Exchange:
    """Lets entries that may not meet change places with fillers of other batches, in place."""

    conflicts: Conflicts
    piece: Int32[np.ndarray, "entries"]
    batch: Int32[np.ndarray, "entries"]
    is_filler: Bool[np.ndarray, "entries"]
    order: Int32[np.ndarray, "own"]
    place: Int32[np.ndarray, "entries"]
    """Of each entry in ``order``."""
    size: int
    """Of a batch."""
    rng: np.random.Generator

    def part(self, rank: Int64[np.ndarray, "entries"]) -> int:
        """Move those that meet one of a lower rank; return how many have to stay.

        No batch can take these: one that has none of theirs has nobody who can come in exchange.
        """
        stayed = 0
        for entry in self.conflicts.met(self.batch, rank).tolist():
            here = self.batch[entry]
            taken = self.batch[self.conflicts.of(entry)]
            if (taken == here).sum() == 1:
                continue  # itself: who it met has moved
            is_open = np.ones(len(self.order) // self.size, bool)
            is_open[taken[taken >= 0]] = False
            stayed += 1
            for other in chain(self._candidates(entry, is_open), self._fitting(entry, is_open)):
                if not (self.batch[self.conflicts.of(other)] == here).any():
                    self._swap(entry, other)
                    stayed -= 1
                    break
        return stayed

    def _candidates(self, entry: int, is_open: Bool[np.ndarray, "batches"]) -> Iterator[int]:
        """Yield fillers of batches that could take an entry, at first of its own piece.

        Where batches have no filler, any of their entries.
        """
        if not self.is_filler[entry] and self.piece[entry] >= 0:
            order, starts = self._by_piece
            low, high = starts[self.piece[entry]], starts[self.piece[entry] + 1]
            alike = order[self.rng.integers(low, high, size=TRIES)]
            alike = alike[self.is_filler[alike] & (self.batch[alike] >= 0)]
            yield from alike[is_open[self.batch[alike]]].tolist()
        open_batches = np.flatnonzero(is_open)
        if not len(open_batches):
            return
        for there in open_batches[self.rng.integers(len(open_batches), size=TRIES)].tolist():
            members = self._members(there)
            fillers = members[self.is_filler[members]]
            some = fillers if len(fillers) else members
            yield int(some[self.rng.integers(len(some))])

    def _fitting(self, entry: int, is_open: Bool[np.ndarray, "batches"]) -> Iterator[int]:
        """Yield one of all that could take an entry's place and give it theirs, if there is any."""
        if not is_open.any():
            return
        members = self._members(int(self.batch[entry]))
        is_fit = np.zeros(len(self.batch), bool)
        is_fit[self.order[np.repeat(is_open, self.size)]] = True
        for member in members[members != entry].tolist():
            is_fit[self.conflicts.of(member)] = False
        found = np.flatnonzero(is_fit)
        fillers = found[self.is_filler[found]]
        some = fillers if len(fillers) else found
        if len(some):
            yield int(some[self.rng.integers(len(some))])

    def _members(self, batch: int) -> Int32[np.ndarray, "size"]:
        return self.order[batch * self.size : (batch + 1) * self.size]

    def _swap(self, one: int, other: int) -> None:
        for values in (self.batch, self.is_filler, self.place):
            values[one], values[other] = values[other], values[one]
        self.order[self.place[one]], self.order[self.place[other]] = one, other

    @cached_property
    def _by_piece(self) -> tuple[np.ndarray, np.ndarray]:
        """Entries by piece, and where those of each begin."""
        order = np.argsort(self.piece, kind="stable")
        numbers = np.arange(int(self.piece.max()) + 2)
        return order, np.searchsorted(self.piece[order], numbers)
