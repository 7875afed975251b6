"""The order of one epoch with hard batches: what a batch needs of one kind, and none that conflict.

A batch that an epoch shares with the next has no hard part: its two halves are drawn first, each
from its epoch, and the later one does not meet the earlier.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from data_pipelines.mining.conflicts import Conflicts

TRIES = 32
"""Entries that a conflicting one might change places with, before it stays where it is."""


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
    _Exchange(conflicts, piece, batch, is_filler, order, place, size, rng).part(rank)
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

    def part(self, rank: Int64[np.ndarray, "entries"]) -> None:
        """Move those that meet one of a lower rank; one that no batch can take stays."""
        for entry in self.conflicts.met(self.batch, rank).tolist():
            here = self.batch[entry]
            taken = self.batch[self.conflicts.of(entry)]
            if (taken == here).sum() == 1:
                continue  # itself: who it met has moved
            is_open = np.ones(len(self.order) // self.size, bool)
            is_open[taken[taken >= 0]] = False
            if not is_open.any():
                continue
            for other in self._candidates(entry, is_open):
                if not (self.batch[self.conflicts.of(other)] == here).any():
                    self._swap(entry, other)
                    break

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
        for there in open_batches[self.rng.integers(len(open_batches), size=TRIES)].tolist():
            members = self.order[there * self.size : (there + 1) * self.size]
            fillers = members[self.is_filler[members]]
            some = fillers if len(fillers) else members
            yield int(some[self.rng.integers(len(some))])

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
