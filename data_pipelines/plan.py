"""Which sample stands where in which batch: arithmetic on (seed, samples seen), without any I/O.

The plan is one endless row of epochs. Each epoch holds every sample once, in an order of its own;
a batch may straddle two epochs and nothing is dropped. Processes take contiguous parts of a
global batch, so their number changes nothing about what a batch holds.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlp.errors import UserError


class Place(NamedTuple):
    """A sample at its place in the plan."""

    epoch: int
    index: int
    """Number of the sample among the samples of the set, from 0."""


@dataclass(frozen=True)
class Plan:
    """The order of training samples.

    Raises:
        UserError: The batch is larger than the data.
    """

    num_samples: int
    batch_size: int
    """Pairs in a step over all processes."""
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size > self.num_samples:
            raise UserError(
                f"The batch of {self.batch_size} is larger than the data, {self.num_samples} "
                f"samples. Write --data.batch-size {self.num_samples} or less."
            )

    def batch(self, samples_seen: int, process: int = 0, num_processes: int = 1) -> list[Place]:
        """Return what this process reads of the global batch that follows ``samples_seen``."""
        share = self.batch_size // num_processes
        start = samples_seen + process * share
        return [self.place(position) for position in range(start, start + share)]

    def place(self, position: int) -> Place:
        """Return the sample at a position of the endless row of epochs."""
        epoch, rank = divmod(position, self.num_samples)
        return Place(epoch, int(_order(self.seed, epoch, self.num_samples)[rank]))


def check_processes(batch_size: int, num_processes: int) -> None:
    """Raise UserError unless every process gets the same number of pairs."""
    if batch_size % num_processes:
        near = batch_size - batch_size % num_processes
        raise UserError(
            f"The batch of {batch_size} does not divide by {num_processes} processes. Write "
            f"--data.batch-size {near or num_processes} or {near + num_processes}."
        )


def sample_seed(seed: int, epoch: int, source: str, key: str, copy: int = 0) -> int:
    """Return the number from which everything random about a sample follows, in [0, 2**63)."""
    text = f"{seed}\n{epoch}\n{source}\n{key}\n{copy}"
    return hash63(text)


def hash63(data: str | bytes) -> int:
    """Return a number in [0, 2**63) that is the same on every machine and in every process."""
    data = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
