"""Processes that share a piece of work: one, or as many as ``torchrun`` started."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vlp.console import speaking

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """Which process this is, and how they tell each other what they found."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def started() -> "Processes":
        """Return the processes of the group that this one belongs to; itself alone without one."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        return Processes(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def gather(self, found: list[Value]) -> list[Value]:
        """Return the lists of all processes as one, on every process."""
        if self.count == 1:
            return found
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, found)
        return list(chain.from_iterable(parts))

    def share(
        self, items: Sequence[Item], work: Callable[[Item], Value], *, idle: Item
    ) -> list[Value]:
        """Return what ``work`` makes of each item, in their order, on every process.

        Each process does every n-th item. All call ``work`` equally often, with ``idle`` where no
        item is left: where parameters are split over processes, all must call.
        """
        own = range(self.rank, math.ceil(len(items) / self.count) * self.count, self.count)
        found = [(place, work(items[place] if place < len(items) else idle)) for place in own]
        parts = dict(self.gather(found))
        return [parts[place] for place in range(len(items))]

    def from_first(self, find: Callable[[], Value]) -> Value:
        """Return what the first process finds, on every process; what it raises, all raise."""
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = find()
            except Exception as error:
                told[1] = error
        if self.count > 1:
            dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]


ALONE = Processes()
"""This process, by itself."""


@contextmanager
def joined() -> Iterator[Processes]:
    """Yield the processes that ``torchrun`` started, or this one; only the first one speaks."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo")
    processes = Processes(dist.get_rank(), count)
    try:
        with nullcontext() if processes.is_first else speaking("json"):
            yield processes
    finally:
        dist.destroy_process_group()
