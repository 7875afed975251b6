"""How often values occur in a whole set, exactly, with a part of them in memory at a time."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from data_pipelines.curation.columns import Column, Columns

PART = 1 << 26
"""Occurrences that are counted at a time, about 2 GB: a larger set is walked several times."""

Occurrences = Callable[[Column], tuple[np.ndarray, np.ndarray]]
"""Returns rows of a column and the values, 64 bits each, that occur in them."""


def values_left(column: Column) -> tuple[Int64[np.ndarray, "left"], UInt64[np.ndarray, "left"]]:
    """Return the rows that are left and their values, bytes of 8."""
    rows = np.flatnonzero(column.left)
    if not len(rows):  # a shard of which nothing was scored has values of no width
        return rows, np.empty(0, np.uint64)
    return rows, np.ascontiguousarray(column.bytes[rows]).view(np.uint64).reshape(-1)


def counted(
    columns: Columns, occurrences: Occurrences
) -> Iterator[tuple[Int64[np.ndarray, "part"], Int64[np.ndarray, "part"]]]:
    """Yield the place of every occurrence, and how often its value occurs in the whole set.

    Values are parted by their lowest bits; the parts do not depend on each other.
    """
    total = sum(len(occurrences(column)[0]) for column in columns)
    parts = 1 << max(0, (total - 1) // PART).bit_length()
    for part in range(parts):
        places, values = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for column in columns:
            rows, found = occurrences(column)
            is_in = found % np.uint64(parts) == part
            places.append(column.first + rows[is_in])
            values.append(found[is_in])
        _, which, counts = np.unique(
            np.concatenate(values), return_inverse=True, return_counts=True
        )
        yield np.concatenate(places), counts[which]


def count_of_rank(parts: Iterable[Int64[np.ndarray, "_"]], rank: int) -> int:
    """Return how often the value occurs that so many values occur at least as often as.

    Of counts 5, 3, 1 and rank 2 it is 3; where there are fewer values, 1.

    Args:
        parts: For every occurrence of a value, how often the value occurs.
        rank: 1 for the most frequent.
    """
    distinct = Counter()
    for counts in parts:
        for count, occurrences in zip(*np.unique(counts, return_counts=True), strict=True):
            distinct[int(count)] += int(occurrences) // int(count)
    for count in sorted(distinct, reverse=True):
        rank -= distinct[count]
        if rank <= 0:
            return count
    return 1


def without(
    columns: Columns, parts: Iterable[Int64[np.ndarray, "_"]]
) -> Iterator[Bool[np.ndarray, "rows"]]:
    """Yield for each column which rows are at none of these places; a byte for each row of all."""
    dropped = np.zeros(sum(len(column.left) for column in columns), bool)
    for places in parts:
        dropped[places] = True
    for column in columns:
        yield ~dropped[column.first : column.first + len(column.left)]
