"""Which entries of an epoch may not meet in a batch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int32, Int64, Integer

from data_pipelines.mining.mined import Mined


@dataclass(frozen=True, eq=False)
class Conflicts:
    """Entries are samples of an epoch; one that stands in it several times is as many entries.

    Entries of the same group conflict, copies of a sample among them, and pairs that were mined.
    """

    group: Int32[np.ndarray, "entries"]
    pairs: Int32[np.ndarray, "pairs 2"]

    @classmethod
    def of_mined(cls, mined: Mined, sample: Int32[np.ndarray, "entries"]) -> "Conflicts":
        """Return the conflicts of entries, each by the number of its sample, ascending."""
        if len(sample) == len(mined) and (np.diff(sample) == 1).all():
            return cls(mined.group, mined.apart)
        starts = np.searchsorted(sample, np.arange(len(mined) + 1))
        firsts, counts = starts[:-1], np.diff(starts)
        one, other = mined.apart.T
        # Every copy of the one with every copy of the other.
        times = counts[one] * counts[other]
        number = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        width = np.repeat(counts[other], times)
        left = np.repeat(firsts[one], times) + number // np.maximum(width, 1)
        right = np.repeat(firsts[other], times) + number % np.maximum(width, 1)
        return cls(mined.group[sample], np.stack([left, right], 1).astype(np.int32))

    def of(self, entry: int) -> Int32[np.ndarray, "_"]:
        """Return the entries that may not meet this one, itself among them."""
        group = self.group[entry]
        order, starts = self._by_group
        ends, others = self._by_pair
        paired = others[ends[entry] : ends[entry + 1]]
        same = order[starts[group] : starts[group + 1]]
        return np.concatenate([same, paired]) if len(paired) else same

    def met(
        self, batch: Int32[np.ndarray, "entries"], rank: Integer[np.ndarray, "entries"]
    ) -> Int64[np.ndarray, "_"]:
        """Return entries to move so that none meets another, those of the last rank first to go.

        Args:
            batch: Of each entry; -1 is no batch.
            rank: Of two entries that meet, the one of the higher rank is to move.
        """
        order = np.lexsort((rank, self.group, batch))
        order = order[np.searchsorted(batch[order], 0) :]
        same = (np.diff(batch[order]) == 0) & (np.diff(self.group[order]) == 0)
        one, other = self.pairs.T
        is_met = (batch[one] == batch[other]) & (batch[one] >= 0)
        one, other = one[is_met], other[is_met]
        paired = np.where(rank[one] > rank[other], one, other)
        found = np.unique(np.concatenate([order[1:][same], paired]))
        return found[np.argsort(-rank[found], kind="stable")].astype(np.int64)

    def count(self, batch: Int32[np.ndarray, "entries"]) -> int:
        """Return how many entries meet one that they may not, one of each two."""
        return len(self.met(batch, np.arange(len(batch))))

    @cached_property
    def _by_group(self) -> tuple[np.ndarray, np.ndarray]:
        """Entries by group, and where those of each group begin."""
        order = np.argsort(self.group, kind="stable").astype(np.int32)
        size = int(self.group.max()) + 2 if len(self.group) else 1
        return order, np.searchsorted(self.group[order], np.arange(size))

    @cached_property
    def _by_pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the partners of each entry begin, and the partners."""
        both = np.concatenate([self.pairs, self.pairs[:, ::-1]])
        both = both[np.argsort(both[:, 0], kind="stable")]
        starts = np.searchsorted(both[:, 0], np.arange(len(self.group) + 1))
        return starts, both[:, 1]


def first_free(
    conflicts: Conflicts,
    candidates: Int64[np.ndarray, "candidates"],
    count: int,
    beside: Int64[np.ndarray, "beside"],
) -> Int64[np.ndarray, "count"]:
    """Return the first so many candidates that meet neither each other nor what is there already.

    Where there are too few of them, the first of the others are taken, too.
    """
    is_blocked = np.zeros(len(conflicts.group), bool)
    for entry in beside.tolist():
        is_blocked[conflicts.of(entry)] = True
    taken: list[int] = []
    for entry in candidates.tolist():
        if len(taken) == count:
            break
        if not is_blocked[entry]:
            taken.append(entry)
            is_blocked[conflicts.of(entry)] = True
    if len(taken) < count:
        others = candidates[~np.isin(candidates, taken)]
        taken += others[: count - len(taken)].tolist()
    return np.array(taken, np.int64)
