"""Which samples of a set repeat others, and which of them stays."""

from collections.abc import Iterator

import numpy as np

from data_pipelines.curation.columns import Column, Columns

PARTITION = 1 << 24
"""Values that are compared at a time, about 1 GB: a larger set is walked several times."""


def is_first(columns: Columns) -> Iterator[np.ndarray]:
    """Yield which rows are the first of their value, bytes of 16, among those that are left.

    Values are parted by their first byte, so that memory holds a part of them at a time; the parts
    do not depend on each other.
    """
    total = sum(int(column.left.sum()) for column in columns)
    parts = min(256, 1 << max(0, (total // PARTITION)).bit_length()) if total > PARTITION else 1
    firsts = np.sort(np.concatenate([_firsts(columns, part, parts) for part in range(parts)]))
    for column in columns:
        start, end = np.searchsorted(firsts, [column.first, column.first + len(column.left)])
        is_kept = np.zeros(len(column.left), bool)
        is_kept[firsts[start:end] - column.first] = True
        yield is_kept


def _firsts(columns: Columns, part: int, parts: int) -> np.ndarray:
    """Return the places of the first of each value in one part of the values."""
    values, places = [], []
    for column in columns:
        rows = np.flatnonzero(column.left & _is_in(column, part, parts))
        values.append(np.ascontiguousarray(column.bytes[rows]).view("u8,u8").reshape(-1))
        places.append(column.first + rows)
    _, index = np.unique(np.concatenate(values), return_index=True)
    return np.concatenate(places)[index]


def _is_in(column: Column, part: int, parts: int) -> np.ndarray:
    return column.bytes[:, 0] % parts == part
