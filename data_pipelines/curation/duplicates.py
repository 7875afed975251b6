"""Which samples of a set repeat others, and which of them stays."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int64, Shaped

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
    return is_at(columns, firsts)


def is_at(columns: Columns, places: Int64[np.ndarray, "_"]) -> Iterator[np.ndarray]:
    """Yield which rows of each column are at these places, ascending, of the whole set."""
    for column in columns:
        start, end = np.searchsorted(places, [column.first, column.first + len(column.left)])
        mask = np.zeros(len(column.left), bool)
        mask[places[start:end] - column.first] = True
        yield mask


def components(count: int, pairs: Iterable[Int64[np.ndarray, "_ 2"]]) -> Int64[np.ndarray, "count"]:
    """Return for each of so many items the smallest that hangs together with it by pairs."""
    parent = np.arange(count)

    def root(item: int) -> int:
        while (above := int(parent[item])) != item:
            parent[item] = item = int(parent[above])
        return item

    for some in pairs:
        for one, other in some.tolist():
            low, high = sorted((root(one), root(other)))
            parent[high] = low
    while (above := parent[parent] != parent).any():
        parent[above] = parent[parent[above]]
    return parent


def groups(
    component: Int64[np.ndarray, "items"],
) -> Iterator[Int64[np.ndarray, "members"]]:
    """Yield the items of each component that has several, ascending."""
    order = np.argsort(component, kind="stable")
    _, starts, sizes = np.unique(component[order], return_index=True, return_counts=True)
    is_several = sizes > 1
    for start, size in zip(starts[is_several].tolist(), sizes[is_several].tolist(), strict=True):
        yield order[start : start + size]


def best_of(
    component: Int64[np.ndarray, "items"], rank: Shaped[np.ndarray, "items"]
) -> Int64[np.ndarray, "_"]:
    """Return the item of highest rank of each component, the first of equals; ascending."""
    order = np.lexsort((np.arange(len(rank)), -rank.astype(np.int64), component))
    _, firsts = np.unique(component[order], return_index=True)
    return np.sort(order[firsts])


def _firsts(columns: Columns, part: int, parts: int) -> np.ndarray:
    """Return the places of the first of each value in one part of the values."""
    values, places = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for column in columns:
        rows = np.flatnonzero(column.left & _is_in(column, part, parts))
        if len(rows):
            values.append(np.ascontiguousarray(column.bytes[rows]).view(np.uint64))
            places.append(column.first + rows)
    value, place = np.concatenate(values), np.concatenate(places)
    order = np.lexsort((place, value[:, 1], value[:, 0]))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (value[order][1:] != value[order][:-1]).any(axis=1)
    return place[order][is_new]


def _is_in(column: Column, part: int, parts: int) -> np.ndarray:
    return column.bytes[:, 0] % parts == part
