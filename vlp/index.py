"""Nearest neighbours over features: build, save, load, search; k-means. The one door to faiss.

An index folder holds ``index.faiss``, ``metadata.parquet`` (a row for each feature) and
``config.json``, which names the model that the features are of.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64, UInt8

from vlp.console import show
from vlp.errors import UserError
from vlp.features import read_metadata, stack
from vlp.output import output_folder, read_record
from vlp.types import Hit

BLOCK = 65_536
"""Features that are compared at a time; another number changes last bits of their cosines."""
POINTS_PER_CENTROID = 256
"""Features that k-means learns a centroid from, on average: faiss's default."""
LOOK_UP = 300
"""Codes of 256 bits that are compared one after the other while a hash table looks up a bucket, or
a code in it: 170 as measured with 100,000 codes, and more where the tables outgrow the cache."""


@dataclass(frozen=True)
class Index:
    """Features that can be searched, and what each row is."""

    faiss_index: faiss.Index
    metadata: pa.Table
    """``key``, ``caption``, ``metadata`` (JSON), ``shard``, ``offset``, ``size`` of each row."""
    model: str
    """The model that made the features, as it was named to ``vlp embed``."""
    model_hash: str

    def neighbours(
        self, queries: Float[np.ndarray, "queries dim"], k: int
    ) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return the cosines and rows of the k nearest features, nearest first.

        ``k`` beyond the number of rows gives them all. Queries are unit-length rows.
        """
        k = min(k, self.faiss_index.ntotal)
        return self.faiss_index.search(np.ascontiguousarray(queries, np.float32), k)

    def hits(self, query: Float[np.ndarray, "dim"], k: int) -> list[Hit]:
        """Return the k best hits of one query, best first; equal scores in the order of rows."""
        scores, rows = self.neighbours(query[None], k)
        order = np.lexsort((rows[0], -scores[0]))
        return [self._hit(float(scores[0][i]), int(rows[0][i])) for i in order]

    def picture(self, hit: Hit) -> bytes:
        """Return the encoded picture of a hit, with one seek into its shard.

        Raises:
            UserError: The shard has moved since the features were made, or nobody said where it is.
        """
        if hit.metadata["shard"] is None:
            raise UserError(
                f"Where the picture of {hit.key} lies is not known. `vlp embed` shards or a folder."
            )
        try:
            with open(hit.metadata["shard"], "rb") as file:
                file.seek(hit.metadata["offset"])
                return file.read(hit.metadata["size"])
        except OSError:
            raise UserError(
                f"The shard {hit.metadata['shard']} of {hit.key} is not there any more. Put it "
                f"back, or run `vlp embed` and `vlp index` on where the shards are now."
            ) from None

    def _hit(self, score: float, row: int) -> Hit:
        columns = self.metadata.slice(row, 1).to_pylist()[0]
        fields = json.loads(columns.pop("metadata") or "{}")
        return Hit(columns.pop("key"), score, {**columns, "fields": fields})


def build_index(
    features: Path, out: Path, *, model: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Build an exact index (inner product of unit-length rows) over image features.

    Args:
        features: What `vlp embed` or clip-retrieval wrote.
        out: Folder to write.
        model: That made the features, where it is not written beside them.
        overwrite: Replace what another command or config wrote.

    Raises:
        UserError: The folder holds no image features, the model is not known, or ``out`` is
            another's.
    """
    rows, metadata = stack(features, "image"), read_metadata(features)
    if len(rows) != len(metadata):
        raise UserError(
            f"{features} has {len(rows)} features but {len(metadata)} rows of metadata."
        )
    config = {**_maker(features, model), "features": str(features), "kind": "exact"}
    with output_folder(out, "index", config, inputs=[features], overwrite=overwrite) as part:
        index = faiss.IndexFlatIP(rows.dim)
        for _, block in _blocks(rows):
            faiss.normalize_L2(block)  # fp16 has rounded them
            index.add(block)
        faiss.write_index(index, str(part / "index.faiss"))
        pq.write_table(metadata, part / "metadata.parquet")
    show(f"Indexed {len(rows)} features of {features} into {out}, exact.")
    return {"features": len(rows), "dim": rows.dim, "out": str(out)}


def _maker(features: Path, model: str | None) -> dict[str, str]:
    """Return the model that made features, and its hash."""
    record = read_record(features)
    if record is not None and record["command"] == "embed" and model is None:
        return {name: record["config"][name] for name in ("model", "model_hash")}
    if model is None:
        raise UserError(f"Which model made {features} is not written there. Name it with --model.")
    from vlp.checkpoint import encoder_hash, load_encoder  # takes seconds

    return {"model": model, "model_hash": encoder_hash(load_encoder(model))}


def load_index(folder: Path) -> Index:
    """Return a saved index.

    Raises:
        UserError: The folder holds no index, or a damaged one.
    """
    record = read_record(folder) if folder.is_dir() else None
    if record is None or record["command"] != "index":
        raise UserError(f"{folder} holds no index. Give the folder that `vlp index` wrote.")
    try:
        index = faiss.read_index(str(folder / "index.faiss"))
        metadata = pq.read_table(folder / "metadata.parquet")
    except (RuntimeError, OSError, pa.ArrowInvalid) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"The index {folder} is damaged ({line}). Build it again.") from None
    return Index(index, metadata, record["config"]["model"], record["config"]["model_hash"])


@runtime_checkable
class Matrix(Protocol):
    """A matrix of features that may be larger than memory: an array, mapped or in parts."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


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
    for start, block in _blocks(rows):
        found, nearest = index.search(block, 1)
        cosines[start : start + len(block)] = found[:, 0]
        numbers[start : start + len(block)] = nearest[:, 0]
    return numbers, cosines


def neighbours(
    queries: Float[np.ndarray, "queries dim"], rows: Matrix, k: int
) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """Return the cosines and numbers of the k nearest of many features, nearest first, exactly.

    The features are walked once, a block in memory at a time; ``k`` beyond their number gives all.
    Equal cosines come in the order of the rows.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    cosines = np.empty((len(queries), 0), np.float32)
    numbers = np.empty((len(queries), 0), np.int64)
    for start, block in _blocks(rows):
        nearer = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        cosines = np.concatenate([cosines, nearer[0]], axis=1)
        numbers = np.concatenate([numbers, nearer[1] + start], axis=1)
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


def _blocks(rows: Matrix) -> Iterator[tuple[int, Float[np.ndarray, "block dim"]]]:
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
