"""Pairs of samples that are too alike to be each other's negatives."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from data_pipelines.curation.duplicates import components
from data_pipelines.mining.options import Bound
from data_pipelines.mining.tiles import tiles
from vlp.errors import UserError
from vlp.index import BLOCK, Matrix

MOST_PAIRS = 100
"""Pairs for each sample, on average, above which a bound is refused: too many to be kept apart."""


def false_negatives(
    features: dict[str, Matrix], bound: Bound, *, exact: int, seed: int
) -> Int32[np.ndarray, "pairs 2"]:
    """Return the pairs of rows above a bound, the smaller row first, ascending.

    Args:
        features: ``image`` and ``text``, as far as the bound needs them.
        bound: What they may not be above.
        exact: Rows up to which every pair is compared; see ``tiles``.
        seed: Of the cells of more rows.

    Raises:
        UserError: There are more than ``MOST_PAIRS`` for each row.
    """
    is_cross = bound.kind == "cross"
    left = features["image" if is_cross else bound.kind]
    right = features["text"] if is_cross else left
    limits = _limits(features, bound)
    found, most = [np.empty(0, np.int64)], MOST_PAIRS * len(left)
    for tile in tiles(
        left, right, exact=exact, seed=seed, what=f"pairs above {bound}", half=not is_cross
    ):
        is_above = tile.cosines > np.minimum(limits[tile.left][:, None], limits[tile.right])
        one, other = np.nonzero(is_above)
        one, other = tile.left[one], tile.right[other]
        low, high = np.minimum(one, other), np.maximum(one, other)
        found.append((low * np.int64(len(left)) + high)[low < high])
        if len(found) > 256 or sum(map(len, found)) > most:
            found = [np.unique(np.concatenate(found))]
        if sum(map(len, found)) > most:
            raise UserError(
                f"More than {most:,} pairs are above {bound}, {MOST_PAIRS} for each sample: they "
                f"cannot all be kept apart. Write a higher bound after --apart."
            )
    numbers = np.unique(np.concatenate(found))
    return np.stack(np.divmod(numbers, max(1, len(left))), axis=1).astype(np.int32)


def hanging_together(
    group: Int32[np.ndarray, "samples"], pairs: Int32[np.ndarray, "pairs 2"]
) -> Int32[np.ndarray, "samples"]:
    """Return of each sample the number of what hangs together with it by groups and pairs."""
    order = np.argsort(group, kind="stable")
    same = np.flatnonzero(group[order][1:] == group[order][:-1])
    chain = np.stack([order[same], order[same + 1]], axis=1)
    found = components(len(group), [chain, pairs.astype(np.int64)])
    return np.unique(found, return_inverse=True)[1].astype(np.int32)


def joined(
    parts: Sequence[Int32[np.ndarray, "_ 2"]], group: Int32[np.ndarray, "rows"]
) -> Int32[np.ndarray, "pairs 2"]:
    """Return pairs of several kinds, each once, ascending, less those of the same group."""
    every = np.unique(np.concatenate([np.empty((0, 2), np.int32), *parts]), axis=0)
    return every[group[every[:, 0]] != group[every[:, 1]]]


def _limits(features: dict[str, Matrix], bound: Bound) -> Float32[np.ndarray, "rows"]:
    """Return the cosine that each row as the anchor allows to others."""
    if not bound.is_relative:
        some = next(iter(features.values()))
        return np.full(len(some), bound.limit, np.float32)
    image, text = features["image"], features["text"]
    own = [
        (image[start : start + BLOCK] * text[start : start + BLOCK]).sum(axis=1)
        for start in range(0, len(image), BLOCK)
    ]
    # An anchor that does not even fit its own caption says nothing about others.
    positive = np.concatenate(own)
    return np.where(positive > 0, bound.limit * positive, 1).astype(np.float32)
