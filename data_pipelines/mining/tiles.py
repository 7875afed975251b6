"""Cosines between features tile by tile: of every pair, or of those that may be close."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from vlp.console import progress
from vlp.index import BLOCK, Matrix, assign, kmeans, neighbours

TILE = 4096
PROBES = 4
"""Cells that are searched for each feature."""
CELL = 1000
"""Features of a cell, on average."""
POINTS = 64
"""Features that k-means learns the centroid of a cell from, on average."""


class Tile(NamedTuple):
    """Cosines of some features to others."""

    left: Int64[np.ndarray, "left"]
    right: Int64[np.ndarray, "right"]
    cosines: Float32[np.ndarray, "left right"]


def tiles(
    left: Matrix, right: Matrix, *, exact: int, seed: int, what: str, half: bool = False
) -> Iterator[Tile]:
    """Yield the cosines of every pair of a feature of ``left`` and one of ``right``.

    Where both are the same features, each meets itself, and pairs come twice.

    Args:
        left: Unit-length features.
        right: Likewise.
        exact: Of more features than this, cosines of each on the left to the ``PROBES`` cells on
            the right that it is nearest to.
        seed: Draws what the cells are learnt from.
        what: Is done, for the progress bar.
        half: Leave out tiles in which every pair comes for the second time.
    """
    if len(right) <= exact:
        yield from _every(left, right, what, half)
        return
    number = max(1, round(len(right) / CELL))
    centroids = kmeans(right, number, seed=seed, sample=POINTS * number)
    cell = assign(right, centroids)[0]
    by_cell = np.argsort(cell, kind="stable")
    ends = np.searchsorted(cell[by_cell], np.arange(number + 1))
    probed = np.concatenate(
        [
            neighbours(left[start : start + BLOCK], centroids, PROBES)[1].astype(np.int32)
            for start in range(0, len(left), BLOCK)
        ]
    )  # [left, probes]
    asking = np.argsort(probed.reshape(-1), kind="stable")
    starts = np.searchsorted(probed.reshape(-1)[asking], np.arange(number + 1))
    with progress(number, what) as advance:
        for one in range(number):
            inside = np.sort(by_cell[ends[one] : ends[one + 1]])
            queries = np.sort(asking[starts[one] : starts[one + 1]] // probed.shape[1])
            targets = right[inside]
            for start in range(0, len(queries), TILE):
                some = queries[start : start + TILE]
                yield Tile(some, inside, left[some] @ targets.T)
            advance(1)


def _every(left: Matrix, right: Matrix, what: str, half: bool) -> Iterator[Tile]:
    targets = np.ascontiguousarray(right[:])
    with progress(len(left), what) as advance:
        for start in range(0, len(left), TILE):
            queries = left[start : start + TILE]
            numbers = np.arange(start, start + len(queries))
            for first in range(start if half else 0, len(targets), TILE):
                some = targets[first : first + TILE]
                yield Tile(numbers, np.arange(first, first + len(some)), queries @ some.T)
            advance(len(queries))
