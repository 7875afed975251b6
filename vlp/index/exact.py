"""Exact neighbours, clusters and near-duplicate codes of features that may not fit into memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import faiss
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from vlp.errors import UserError

BLOCK = 65_536
"""Features that are compared at a time; another number changes last bits of their cosines."""
POINTS_PER_CENTROID = 256
"""Features that k-means learns a centroid from, on average: faiss's default."""
LOOK_UP = 300
"""Codes of 256 bits that are compared one after the other while a hash table looks up a bucket, or
a code in it: 170 as measured with 100,000 codes, and more where the tables outgrow the cache."""


@runtime_checkable
class Matrix(Protocol):
    """A matrix of features that may be larger than memory: an array, mapped or in parts."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Window:
    """Some rows of a matrix, one after the other."""

    rows: Matrix
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.count)
        return self.rows[self.start + first : self.start + last]


def kmeans(
    rows: Matrix, k: int, *, seed: int = 0, sample: int | None = None, iterations: int = 20
) -> Float[np.ndarray, "k dim"]:
    """Return k unit-length centroids of unit-length features: spherical k-means.

    Learnt from features drawn by the seed, as many as ``sample`` says or ``POINTS_PER_CENTROID``
    for each centroid. The same rows and seed give the same centroids, whatever the threads.

    Raises:
        UserError: There are fewer features than centroids.
    """
    if not 1 <= k <= len(rows):
        raise UserError(f"{k} clusters of {len(rows)} features: ask for 1 to {len(rows)}.")
    size = min(len(rows), max(k, sample or POINTS_PER_CENTROID * k))
    drawn = np.random.default_rng(seed).choice(len(rows), size, replace=False)
    points = np.ascontiguousarray(rows[np.sort(drawn)], np.float32)
    learner = faiss.Kmeans(
        points.shape[1],
        k,
        niter=iterations,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    learner.train(points)
    assert learner.centroids is not None
    return learner.centroids


def assign(
    rows: Matrix, centroids: Float[np.ndarray, "k dim"]
) -> tuple[Int64[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """Return the number of the nearest centroid of each feature, and the cosine to it."""
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids, np.float32))
    cosines = np.empty(len(rows), np.float32)
    numbers = np.empty(len(rows), np.int64)
    for start, block in blocks(rows):
        found, nearest = index.search(block, 1)
        cosines[start : start + len(block)] = found[:, 0]
        numbers[start : start + len(block)] = nearest[:, 0]
    return numbers, cosines


def neighbours(
    queries: Float[np.ndarray, "queries dim"],
    rows: Matrix,
    k: int,
    *,
    allowed: Bool[np.ndarray, "rows"] | None = None,
) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """Return the cosines and numbers of the k nearest of many features, nearest first, exactly.

    The features are walked once, a block in memory at a time; ``k`` beyond their number gives all.
    Equal cosines come in the order of the rows. Where fewer than k rows are ``allowed``, the rest
    have the number -1.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    cosines = np.empty((len(queries), 0), np.float32)
    numbers = np.empty((len(queries), 0), np.int64)
    for start, block in blocks(rows):
        some = None if allowed is None else allowed[start : start + len(block)]
        if some is not None and not some.any() and numbers.size:
            continue
        nearer, places = _nearest(queries, block, min(k, len(block)), some)
        cosines = np.concatenate([cosines, nearer], axis=1)
        numbers = np.concatenate([numbers, np.where(places < 0, -1, places + start)], axis=1)
        order = np.lexsort((numbers, -cosines), axis=1)[:, :k]  # [queries, at most k]
        cosines = np.take_along_axis(cosines, order, axis=1)
        numbers = np.take_along_axis(numbers, order, axis=1)
    return cosines, numbers


def hamming_pairs(
    codes: UInt8[np.ndarray, "codes bytes"], radius: int, *, block: int = 4096
) -> Iterator[Int64[np.ndarray, "pairs 2"]]:
    """Yield pairs of rows whose codes differ in at most ``radius`` bits, the smaller row first.

    Exact but for one thing: of equal codes only the first is compared with others, and the rest
    are paired with it. What hangs together stays the same, and a picture that is there a million
    times is a million pairs.

    Args:
        codes: Such as PDQ hashes, ``[n, 32]``.
        radius: Bits; at most 31 of PDQ's 256 are the same picture.
        block: Codes that are compared at a time.
    """
    firsts, equal = _equal_codes(codes)
    if len(equal):
        yield equal
    codes = np.ascontiguousarray(codes[firsts])
    index = _binary_index(len(codes), codes.shape[1] * 8, radius)
    for start in range(0, len(codes), block):
        queries = codes[start : start + block]
        index.add(queries)  # so every pair is found once, by its later code
        ends, _, found = index.range_search(queries, radius + 1)  # faiss leaves out the bound
        later = np.repeat(np.arange(start, start + len(queries)), np.diff(ends.astype(np.int64)))
        is_pair = found < later
        yield firsts[np.stack([found[is_pair], later[is_pair]], axis=1)]


def selector(allowed: Bool[np.ndarray, "rows"]) -> faiss.IDSelector:
    """Return what lets faiss see some rows only."""
    bits = np.packbits(allowed, bitorder="little")
    return faiss.IDSelectorBitmap(bits)  # pyright: ignore[reportCallIssue]


def _nearest(
    queries: Float[np.ndarray, "queries dim"],
    block: Float[np.ndarray, "block dim"],
    k: int,
    allowed: Bool[np.ndarray, "block"] | None,
) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    if allowed is None:
        return faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
    cosines = np.empty((len(queries), k), np.float32)
    numbers = np.empty((len(queries), k), np.int64)
    shape = (queries.shape[1], len(queries), len(block), k)
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(block),
        *shape,
        faiss.swig_ptr(cosines),
        faiss.swig_ptr(numbers),
        selector(allowed),
    )
    return cosines, numbers


def blocks(rows: Matrix) -> Iterator[tuple[int, Float[np.ndarray, "block dim"]]]:
    """Yield the first row and the features of one block after the other, in fp32."""
    for start in range(0, len(rows), BLOCK):
        yield start, np.ascontiguousarray(rows[start : start + BLOCK], np.float32)


def _equal_codes(
    codes: UInt8[np.ndarray, "codes bytes"],
) -> tuple[Int64[np.ndarray, "different"], Int64[np.ndarray, "pairs 2"]]:
    """Return the first row of each code, ascending, and (first, other) of rows that are equal."""
    whole = np.ascontiguousarray(codes).view(f"V{codes.shape[1]}").reshape(-1)
    _, firsts, places = np.unique(whole, return_index=True, return_inverse=True)
    first_of_row = firsts[places]
    others = np.flatnonzero(first_of_row != np.arange(len(codes)))
    return np.sort(firsts), np.stack([first_of_row[others], others], axis=1)


def _binary_index(count: int, bits: int, radius: int) -> faiss.IndexBinary:
    """Return an index whose range search is exact, the quickest for so many codes.

    Codes within the radius differ in at most ``radius // parts`` bits of one of their ``parts``
    (Norouzi et al. 2012, multi-index hashing, section 3): so they share a bucket with one of so
    many bits flipped.
    """

    def cost(parts: int) -> float:
        width, flips = bits // parts, radius // parts
        look_ups = parts * sum(math.comb(width, flipped) for flipped in range(flips + 1))
        return LOOK_UP * look_ups * (1 + count / 2**width)

    parts = min(range(max(1, bits // 32), bits // 8 + 1), key=cost)
    if cost(parts) >= count:
        return faiss.IndexBinaryFlat(bits)
    index = faiss.IndexBinaryMultiHash(bits, parts, bits // parts)
    index.nflip = radius // parts
    return index
