"""Clusters of features: spherical k-means, with a limit to their size where asked for."""

import math

import numpy as np
from jaxtyping import Float32, Int32

from vlp.index import BLOCK, Matrix, assign, kmeans, neighbours

POINTS = 64
"""Samples that k-means learns a centroid from, on average."""
LEAST_POINTS = 100_000
"""Samples that it learns all of them from, at least, where there are as many."""
CHOICES = 16
"""Nearest centroids that a sample asks for room, before it asks only those that have some."""


def clusters_of(
    rows: Matrix, number: int, *, cap: float | None, seed: int
) -> Int32[np.ndarray, "rows"]:
    """Return the cluster of each feature.

    Args:
        rows: Unit-length features.
        number: Of clusters.
        cap: Largest size in mean sizes; None: as large as they come out.
        seed: Draws what k-means learns from.
    """
    centroids = kmeans(rows, number, seed=seed, sample=max(LEAST_POINTS, POINTS * number))
    if cap is None:
        return assign(rows, centroids)[0].astype(np.int32)
    room = np.full(number, math.ceil(cap * len(rows) / number))
    return capped(rows, centroids, room)


def capped(
    rows: Matrix, centroids: Float32[np.ndarray, "k dim"], room: np.ndarray
) -> Int32[np.ndarray, "rows"]:
    """Return the cluster of each feature, so that none holds more than its room.

    Features ask for their nearest cluster; one that is asked by too many takes the closest, and the
    others ask for their next. ``room``, int [k], is enough for all and is used up.
    """
    cluster = np.full(len(rows), -1, np.int32)
    while len(asking := np.flatnonzero(cluster < 0)):
        is_open = np.flatnonzero(room)
        cosines, choices = _nearest(rows, asking, centroids[is_open])
        for place in range(choices.shape[1]):
            left = np.flatnonzero(cluster[asking] < 0)
            wanted = is_open[choices[left, place]]
            order = np.lexsort((-cosines[left, place], wanted))
            number = np.arange(len(order)) - np.searchsorted(wanted[order], wanted[order])
            fits = order[number < room[wanted[order]]]
            cluster[asking[left[fits]]] = wanted[fits]
            room -= np.bincount(wanted[fits], minlength=len(room))
    return cluster


def _nearest(
    rows: Matrix, numbers: np.ndarray, centroids: np.ndarray
) -> tuple[Float32[np.ndarray, "_ choices"], Int32[np.ndarray, "_ choices"]]:
    """Return the cosines and numbers of the nearest centroids of some features."""
    found = [
        neighbours(rows[numbers[start : start + BLOCK]], centroids, CHOICES)
        for start in range(0, len(numbers), BLOCK)
    ]
    cosines, choices = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return cosines, choices.astype(np.int32)
