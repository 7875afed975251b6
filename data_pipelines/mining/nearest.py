"""The nearest neighbours of every sample that are no false negatives of it."""

import numpy as np
from jaxtyping import Float32, Int32, Int64

from data_pipelines.mining.tiles import tiles
from vlp.index import Matrix

KEPT = 4
"""Neighbours that are kept for each place beside a seed: others are seeds, or have one already."""
SPARE = 16
"""More that are looked for: false negatives are left out afterwards."""


def nearest(
    rows: Matrix,
    group: Int32[np.ndarray, "rows"],
    apart: Int32[np.ndarray, "pairs 2"],
    *,
    beside: int,
    exact: int,
    seed: int,
) -> Int32[np.ndarray, "rows neighbours"]:
    """Return for each row its nearest ones, nearest first, then -1.

    Args:
        rows: Unit-length features.
        group: Rows of the same one are no neighbours.
        apart: Nor are these pairs, the smaller row first.
        beside: Places beside a seed: ``KEPT`` times as many are returned.
        exact: Rows up to which every pair is compared; see ``tiles``.
        seed: Of the cells of more rows.
    """
    kept = KEPT * (beside + 1)
    k = min(len(rows), kept + SPARE)
    cosines = np.full((len(rows), k), -np.inf, np.float32)
    numbers = np.full((len(rows), k), -1, np.int32)
    for tile in tiles(rows, rows, exact=exact, seed=seed, what="neighbours"):
        tile.cosines[group[tile.left][:, None] == group[tile.right]] = -np.inf
        cosines[tile.left], numbers[tile.left] = _merged(
            cosines[tile.left], numbers[tile.left], tile.cosines, tile.right
        )
    is_gone = np.isneginf(cosines) | _are_pairs(numbers, apart)
    numbers[is_gone] = -1
    order = np.argsort(is_gone, axis=1, kind="stable")[:, :kept]
    return np.take_along_axis(numbers, order, axis=1)


def _merged(
    cosines: Float32[np.ndarray, "left k"],
    numbers: Int32[np.ndarray, "left k"],
    more: Float32[np.ndarray, "left right"],
    right: Int64[np.ndarray, "right"],
) -> tuple[Float32[np.ndarray, "left k"], Int32[np.ndarray, "left k"]]:
    """Return the k best of what was found before and of a tile, best first."""
    k = cosines.shape[1]
    if more.shape[1] > k:
        best = np.argpartition(-more, k - 1, axis=1)[:, :k]
        more, right = np.take_along_axis(more, best, axis=1), right[best]
    else:
        right = np.broadcast_to(right, more.shape)
    cosines = np.concatenate([cosines, more], axis=1)
    numbers = np.concatenate([numbers, right.astype(np.int32)], axis=1)
    order = np.lexsort((numbers, -cosines), axis=1)[:, :k]
    cosines = np.take_along_axis(cosines, order, axis=1)
    return cosines, np.take_along_axis(numbers, order, axis=1)


def _are_pairs(
    numbers: Int32[np.ndarray, "rows k"], apart: Int32[np.ndarray, "pairs 2"]
) -> np.ndarray:
    """Return bool [rows, k]: whether each neighbour is to be kept apart from its row."""
    own = np.arange(len(numbers))[:, None]
    total = np.int64(len(numbers))
    low, high = np.minimum(own, numbers), np.maximum(own, numbers)
    return np.isin(low * total + high, apart[:, 0] * total + apart[:, 1])
