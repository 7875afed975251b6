"""Which sample stands where in which batch: arithmetic on (seed, samples seen), without any I/O.

Each source of shards is an endless row of epochs: an epoch holds every sample exactly as often as
it should, in an order of its own; a batch may straddle two epochs and nothing is dropped. The plan
is one row, or several mixed by weight. Processes and their workers take every n-th sample of a
batch, so their number changes nothing about what a batch holds.

An epoch shuffles shards and cuts the row of their samples into ``lanes`` of equal length, whatever
the sizes of the shards; a lane is read in windows of ``WINDOW`` samples, shuffled inside.
Neighbours in a batch come from different lanes, so a reader of every n-th sample needs few shards
at a time. Sets of up to ``lanes * WINDOW`` samples are shuffled whole.
"""

import hashlib
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt64

from vlp.errors import UserError

LANES = 16
WINDOW = 8192
MIX_SLOTS = 10_000
"""Mixed sources share this many places of a lane by their weights, again and again."""
VISIT = 1000
"""With replacement, this many samples in a row of a lane are of one shard."""


class Place(NamedTuple):
    """A sample at its place in the plan."""

    epoch: int
    source: int
    shard: int
    """Number of the shard in its source, from 0."""
    index: int
    """Number of the sample in its shard, from 0; with replacement, to be taken modulo its size."""
    copy: int
    """0 for a sample that stands in an epoch once, else from 0 to its multiplicity less 1."""


@runtime_checkable
class EndlessRow(Protocol):
    """The samples of one source, one after the other without end."""

    @property
    def seed(self) -> int:
        """From which its order follows."""
        ...

    def place(self, position: int, /) -> tuple[int, int, int, int]:
        """Return (epoch, shard, index, copy) at a position of the row."""
        ...

    def identity(self) -> bytes:
        """Return what two rows share that hold the same samples in the same order."""
        ...


@dataclass(frozen=True, eq=False)
class Row:
    """The endless row of epochs of one source.

    Samples that stand in an epoch several times are dealt to as many passes through the source,
    evenly; all passes of an epoch keep one order, so copies are about a pass apart.
    """

    counts: Int64[np.ndarray, "shards"]
    """Samples in each shard."""
    seed: int
    lanes: int = LANES
    copies: Sequence[Int64[np.ndarray, "_"]] | None = None
    """For each shard, how often each of its samples stands in an epoch; None: every one once."""

    def __len__(self) -> int:
        """Return the number of samples in an epoch, copies counted."""
        return int(self._pass_ends[-1])

    def place(self, position: int) -> tuple[int, int, int, int]:
        """Return (epoch, shard, index, copy) at a position of the row."""
        epoch, rest = divmod(position, len(self))
        number = int(np.searchsorted(self._pass_ends, rest, side="right"))
        size = self._pass_size(number)
        rest -= int(self._pass_ends[number]) - size
        lanes = self.lanes if size > self.lanes * WINDOW else 1
        window = WINDOW if lanes > 1 else size
        offset, lane = divmod(rest, lanes)
        part, offset = divmod(offset, window)
        start = lane * (size // lanes) + min(lane, size % lanes) + part * window
        end = (lane + 1) * (size // lanes) + min(lane + 1, size % lanes)
        shards, indexes = self._windows(epoch, number, start, min(start + window, end))
        shard, index = int(shards[offset]), int(indexes[offset])
        return epoch, shard, index, self._copy(number, shard, index)

    def identity(self) -> bytes:
        """Return what two rows share that hold the same samples in the same order."""
        told = [f"Row {self.seed}".encode(), self.counts.tobytes()]
        return b"|".join([*told, *(c.tobytes() for c in self.copies or ())])

    @cached_property
    def _windows(self) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        """``_window``, the last ones kept: of each lane, or of a whole small set."""
        kept = 2 * self.lanes + 2 if len(self) > self.lanes * WINDOW else 2
        return lru_cache(maxsize=kept)(partial(_window, self))

    @cached_property
    def shard_order(self) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        """``_shard_order``, the last ones kept."""
        return lru_cache(maxsize=4)(partial(_shard_order, self))

    @cached_property
    def _pass_ends(self) -> Int64[np.ndarray, "passes"]:
        if self.copies is None:
            return np.array([self.counts.sum()])
        sizes = np.zeros(self._num_passes, np.int64)
        for shard in range(len(self.counts)):
            sizes += self._dealt[shard].sum(1)
        return np.cumsum(sizes)

    @cached_property
    def _num_passes(self) -> int:
        return max((int(c.max()) for c in self.copies or () if len(c)), default=1)

    @cached_property
    def _dealt(self) -> list[np.ndarray]:
        """For each shard, bool [passes, samples]: which samples stand in which pass."""
        dealt = []
        for shard, copies in enumerate(self.copies or ()):
            phase = _mix(_identity(shard, np.arange(len(copies)))) % np.uint64(self._num_passes)
            inside = np.zeros((self._num_passes, len(copies)), bool)
            for copy in range(self._num_passes):
                own = np.flatnonzero(copies > copy)
                number = (copy * self._num_passes + phase[own].astype(int)) // copies[own]
                inside[number, own] = True
            dealt.append(inside)
        return dealt

    def _pass_size(self, number: int) -> int:
        return int(self._pass_ends[number] - (self._pass_ends[number - 1] if number else 0))

    def pass_counts(self, number: int) -> Int64[np.ndarray, "shards"]:
        """Return how many samples of each shard stand in a pass."""
        if self.copies is None:
            return self.counts
        return np.array([inside[number].sum() for inside in self._dealt])

    def entries(self, number: int, shard: int, indexes: np.ndarray) -> np.ndarray:
        """Return the numbers in the shard of samples that are numbered within a pass."""
        if self.copies is None:
            return indexes
        return np.flatnonzero(self._dealt[shard][number])[indexes]

    def _copy(self, number: int, shard: int, index: int) -> int:
        return 0 if self.copies is None else int(self._dealt[shard][:number, index].sum())


@dataclass(frozen=True, eq=False)
class Resampled:
    """Shards drawn with replacement, for a source that is not counted: there are no epochs."""

    num_shards: int
    seed: int
    lanes: int = LANES

    def place(self, position: int) -> tuple[int, int, int, int]:
        """Return (draw, shard, index, 0); the index goes modulo the size of the shard."""
        offset, lane = divmod(position, self.lanes)
        shard = hash63(f"{self.seed} shard {lane} {offset // VISIT}") % self.num_shards
        return position, shard, hash63(f"{self.seed} sample {position}"), 0

    def identity(self) -> bytes:
        """Return what two rows share that draw the same."""
        return f"Resampled {self.seed}|{self.num_shards}".encode()


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of training samples.

    Raises:
        UserError: The batch is larger than the data.
    """

    rows: Sequence[EndlessRow]
    batch_size: int
    """Pairs in a step over all processes."""
    weights: Sequence[float] = (1.0,)
    """Share of each row in what is read."""
    lanes: int = LANES

    def __post_init__(self) -> None:
        num_samples = self.num_samples
        if num_samples is not None and self.batch_size > num_samples:
            raise UserError(
                f"The batch of {self.batch_size} is larger than the data, {num_samples} "
                f"samples. Write --data.batch-size {num_samples} or less."
            )

    @property
    def num_samples(self) -> int | None:
        """Samples in an epoch of all rows together; None where one is drawn with replacement."""
        lengths = [samples_in(row) for row in self.rows]
        return None if None in lengths else sum(filter(None, lengths))

    def batch(self, samples_seen: int, process: int = 0, num_processes: int = 1) -> list[Place]:
        """Return what this process reads of the global batch that follows ``samples_seen``."""
        stop = samples_seen + self.batch_size
        return [self.place(p) for p in range(samples_seen + process, stop, num_processes)]

    def place(self, position: int) -> Place:
        """Return the sample at a position of the endless row."""
        source = 0
        if len(self.rows) > 1:
            offset, lane = divmod(position, self.lanes)
            block, slot = divmod(offset, MIX_SLOTS)
            sources, before = self._slots(lane, block)
            source = int(sources[slot])
            position = (block * self._shares[source] + int(before[slot])) * self.lanes + lane
        epoch, shard, index, copy = self.rows[source].place(position)
        return Place(epoch, source, shard, index, copy)

    def epochs(self, samples_seen: int) -> list[float | None]:
        """Return how often each row has been read through; None for one without epochs."""
        total = sum(self._shares)
        return [
            samples_seen * share / total / size if (size := samples_in(row)) else None
            for row, share in zip(self.rows, self._shares, strict=True)
        ]

    def identity(self) -> str:
        """Return what two plans share that hold the same samples in the same order."""
        told = [f"{self.weights} {self.lanes}".encode(), *(row.identity() for row in self.rows)]
        return f"{hash63(b'|'.join(told)):016x}"

    @cached_property
    def _slots(self) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
        """``_slots`` of this plan, the last ones of each lane kept."""
        return lru_cache(self.lanes + 1)(partial(_slots, self._shares, self.rows[0].seed))

    @cached_property
    def _shares(self) -> tuple[int, ...]:
        """Slots of each row: its weight, rounded so that they add up and no row goes without."""
        exact = np.array(self.weights) / sum(self.weights) * MIX_SLOTS
        shares = np.maximum(1, np.floor(exact).astype(int))
        shares[np.argsort(shares - exact, kind="stable")[: max(0, MIX_SLOTS - shares.sum())]] += 1
        shares[shares.argmax()] += MIX_SLOTS - shares.sum()
        return tuple(shares.tolist())


def samples_in(row: EndlessRow) -> int | None:
    """Return the samples in an epoch of a row, copies counted; None where it has no epochs."""
    return len(row) if isinstance(row, Sized) else None


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


def _shard_order(row: Row, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the shards of an epoch in their order, and where the samples of each one end."""
    order = np.random.default_rng([row.seed, epoch]).permutation(len(row.counts))
    return order, np.cumsum(row.pass_counts(number)[order])


def _window(
    row: Row, epoch: int, number: int, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (shard, index) of the samples from ``start`` to ``stop`` of a pass, shuffled."""
    order, ends = row.shard_order(epoch, number)
    ranks = np.arange(start, stop)
    at = np.searchsorted(ends, ranks, side="right")
    shards = order[at]
    indexes = ranks - np.where(at > 0, ends[at - 1], 0)
    for place in np.unique(at) if row.copies is not None else ():
        own = at == place
        indexes[own] = row.entries(number, int(order[place]), indexes[own])
    # By what a sample is, not where it stands: all passes of an epoch keep the same order.
    drawn = _mix(_identity(shards, indexes) ^ np.uint64(hash63(f"{row.seed} {epoch}")))
    shuffled = np.argsort(drawn, kind="stable")
    return shards[shuffled].astype(np.int32), indexes[shuffled]


def _slots(
    shares: tuple[int, ...], seed: int, lane: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each slot, and how many slots before it are of the same row.

    The slots of a row are spread evenly from a random start, so that all lanes are about as far in
    each source: its epochs do not mingle, and a batch holds few samples twice.
    """
    starts = np.random.default_rng([seed, lane, block]).random(len(shares))
    times = [(np.arange(n) + start) / n for n, start in zip(shares, starts, strict=True)]
    rows = np.repeat(np.arange(len(shares)), shares)[np.argsort(np.concatenate(times))]
    before = np.empty(len(rows), np.int64)
    before[np.argsort(rows, kind="stable")] = np.concatenate([np.arange(n) for n in shares])
    return rows, before


def _identity(shards: int | np.ndarray, indexes: np.ndarray) -> UInt64[np.ndarray, "samples"]:
    return (np.asarray(shards, np.uint64) << np.uint64(32)) + indexes.astype(np.uint64)


def _mix(numbers: UInt64[np.ndarray, "samples"]) -> UInt64[np.ndarray, "samples"]:
    """Return numbers that look random, each from its own (splitmix64; Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return numbers ^ (numbers >> np.uint64(31))
