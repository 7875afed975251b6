"""The processes of an evaluation: one, or as many as ``torchrun`` started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vlp.console import speaking

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """Which process this is, and how they tell each other what they found."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def gather(self, found: list) -> list:
        """Return the lists of all processes as one, on every process."""
        if self.count == 1:
            return found
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, found)
        return list(chain.from_iterable(parts))

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


@contextmanager
def joined() -> Iterator[Processes]:
    """Yield the processes that ``torchrun`` started, or this one; only the first one speaks."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield Processes()
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
