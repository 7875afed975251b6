"""The endless row of epochs whose batches are hard, by a mined plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from data_pipelines.mining.arrange import Span, arranged
from data_pipelines.mining.blocks import deal_clusters, deal_neighbourhoods
from data_pipelines.mining.conflicts import Conflicts, first_free
from data_pipelines.mining.mined import Mined
from data_pipelines.mining.ramp import Ramp


class Arrangement(NamedTuple):
    """An epoch, or what is left of one."""

    start: int
    """Position of its first entry in the endless row."""
    order: Int32[np.ndarray, "entries"]
    met: int
    """Entries that meet one that they may not: no arrangement was found that keeps them apart."""


@dataclass(frozen=True, eq=False)
class MinedRow:
    """The endless row of epochs of one source, in batches of which a share is hard.

    An epoch holds every sample as often as it should. Its arrangement follows from the mined plan,
    the seed, the epoch, the batch size and the share. Kept in memory are 12 bytes a sample for the
    plan and 4 for each of two epochs; about 100 while an epoch is arranged.
    """

    counts: Int64[np.ndarray, "shards"]
    """Samples in each shard."""
    seed: int
    batch_size: int
    """Pairs in a step over all processes; batches begin at its multiples."""
    mined: Mined
    share: Ramp
    """Of each batch, how much comes from one cluster or from seeds and their neighbours."""
    copies: Sequence[Int64[np.ndarray, "_"]] | None = None
    """For each shard, how often each of its samples stands in an epoch; None: every one once."""
    first: int = 0
    """Position from which this plan holds, a multiple of the batch size; before it was another."""

    def __reduce__(self) -> tuple:
        # To a spawned worker goes what was given, not what has been made of it.
        given = (self.counts, self.seed, self.batch_size, self.mined, self.share)
        return MinedRow, (*given, self.copies, self.first)

    def __len__(self) -> int:
        """Return the number of samples in an epoch, copies counted."""
        return len(self.sample)

    def place(self, position: int) -> tuple[int, int, int, int]:
        """Return (epoch, shard, index, copy) at a position of the row."""
        assert position >= self.first, "read by the plan before"
        epoch = position // len(self)
        start, order, _ = self.arrangement(epoch)
        entry = int(order[position - start])
        sample = int(self.sample[entry])
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        index = sample - int(self._ends[shard] - self.counts[shard])
        copy = entry - int(np.searchsorted(self.sample, sample)) if self.copies else 0
        return epoch, shard, index, copy

    def identity(self) -> bytes:
        """Return what two rows share that hold the same samples in the same order."""
        told = f"{self.seed} {self.batch_size} {self.share} {self.mined.hash} {self.first}".encode()
        return b"|".join([told, self.counts.tobytes(), *(c.tobytes() for c in self.copies or ())])

    @cached_property
    def arrangement(self) -> Callable[[int], Arrangement]:
        """``_arrangement``, the last ones kept."""
        return lru_cache(maxsize=2)(partial(_arrangement, self))

    def span(self, epoch: int) -> Span:
        """Return the positions of an epoch that this plan holds for."""
        start, stop = epoch * len(self), (epoch + 1) * len(self)
        return Span(max(start, self.first), stop, self.batch_size)

    def left(self, epoch: int) -> Int64[np.ndarray, "left"]:
        """Return the entries of an epoch that this plan is to place."""
        if epoch == self.first // len(self) and self.mined.read is not None:
            is_read = np.unpackbits(self.mined.read, count=len(self)).astype(bool)
            return np.flatnonzero(~is_read)
        return np.arange(len(self))

    def tail(self, epoch: int) -> Int64[np.ndarray, "tail"]:
        """Return the entries of the batch that the next epoch goes on with: drawn first."""
        if not self.span(epoch).tail:
            return np.empty(0, np.int64)
        drawn = self.rng(epoch, 0).permutation(self.left(epoch))
        return first_free(self.conflicts, drawn, self.span(epoch).tail, np.empty(0, np.int64))

    def rng(self, epoch: int, purpose: int) -> np.random.Generator:
        """Return random numbers of an epoch, others for each purpose."""
        return np.random.default_rng([self.seed, epoch, purpose])

    @cached_property
    def conflicts(self) -> Conflicts:
        """Which entries may not meet."""
        return Conflicts.of_mined(self.mined, self.sample)

    @cached_property
    def component(self) -> Int32[np.ndarray, "entries"]:
        """Of each entry, what it hangs together with by conflicts."""
        return self.mined.component[self.sample]

    @cached_property
    def sample(self) -> Int32[np.ndarray, "entries"]:
        """The number of each entry's sample among all of the source."""
        samples = np.arange(int(self.counts.sum()), dtype=np.int32)
        return np.repeat(samples, np.concatenate(self.copies)) if self.copies else samples

    @cached_property
    def _ends(self) -> Int64[np.ndarray, "shards"]:
        return np.cumsum(self.counts)

    def hard_parts(
        self, epoch: int, entries: Int64[np.ndarray, "own"]
    ) -> tuple[Int32[np.ndarray, "entries"], Int32[np.ndarray, "entries"]]:
        """Return the batch that each entry is in the hard part of, and what it is alike with.

        Both are numbers, the batch's that in its epoch; -1 is none.
        """
        span = self.span(epoch)
        quotas = [round(self.share.at(start) * self.batch_size) for start in span.starts]
        quotas, rng = np.array(quotas, np.int64), self.rng(epoch, 2)
        is_own = np.zeros(len(self), bool)
        is_own[entries] = True
        if self.mined.neighbours.shape[1]:
            return deal_neighbourhoods(self.mined, self.sample, self.conflicts, is_own, quotas, rng)
        cluster = np.where(is_own, self.mined.cluster[self.sample], -1).astype(np.int32)
        batch = deal_clusters(cluster, self.conflicts.group, self.component, quotas, rng)
        return batch, cluster


def _arrangement(row: MinedRow, epoch: int) -> Arrangement:
    span, left = row.span(epoch), row.left(epoch)
    assert len(left) == span.stop - span.start, "as many entries are left as positions"
    before, tail = row.tail(epoch - 1) if span.head else np.empty(0, np.int64), row.tail(epoch)
    rest = left[~np.isin(left, tail)]
    drawn = row.rng(epoch, 1).permutation(rest)
    head = first_free(row.conflicts, drawn, span.head, before)
    whole = rest[~np.isin(rest, head)]
    batch, piece = row.hard_parts(epoch, whole)
    order = arranged(row.conflicts, row.component, piece, batch, whole, span, row.rng(epoch, 3))
    batch[head], batch[tail] = span.num_batches, span.num_batches + 1
    met = row.conflicts.count(batch)
    met += sum(np.isin(row.conflicts.of(entry), before).any() for entry in head.tolist())
    return Arrangement(span.start, np.concatenate([head, order, tail]).astype(np.int32), int(met))
