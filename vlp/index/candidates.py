"""Kinds of index that fit into memory: what each takes, and how it is made."""

import math
import re
from typing import Literal

import faiss
import numpy as np
from jaxtyping import Float

from vlp.errors import UserError
from vlp.index.exact import Matrix, blocks, kmeans
from vlp.index.plan import EXACT, LINKS, Plan

SMALL = 20_000
"""Rows up to which every vector is compared: that takes a few milliseconds."""
GRAPH = 2_000_000
"""Rows from which no graph is tried: building it takes hours."""
POINTS_PER_LIST = 64
"""Vectors that the centre of a list is learnt from; faiss warns below 39."""
ITERATIONS = 10
CODEBOOK_POINTS = 20_000
"""Vectors that the codes of quantised kinds are learnt from."""


Family = Literal["exact", "ivf_flat", "ivf_sq", "ivf_pq", "hnsw", "hnsw_sq"]
"""Kinds by how they reach rows (inverted file, graph) and hold them (scalar, product codes)."""


def candidates(
    count: int, dim: int, memory: int | None, prefix: int | None, family: Family | None = None
) -> list[Plan]:
    """Return the kinds that fit, untuned; a small set is exact where that fits.

    Args:
        count: Rows.
        dim: Length of a vector.
        memory: Bytes; None: no limit.
        prefix: Coordinates that the index holds; None: all.
        family: The only kinds to try; None: those that may be the fastest.

    Raises:
        UserError: None fits.
    """
    width = prefix or dim
    lists, graph = num_lists(count), f"HNSW{LINKS}"
    kinds = [EXACT if prefix is None else "Flat"]
    if family or count > SMALL or (memory is not None and count * width * 4 > memory):
        kinds += [f"IVF{lists},Flat", f"IVF{lists},SQ8"]
        kinds += [f"IVF{lists},PQ{width // part}x4fs" for part in (2, 4, 8) if width % part == 0]
        is_tight = memory is not None and predicted_bytes(graph, count, width) > memory
        if family:
            kinds = [kind for kind in (*kinds, graph, f"{graph}_SQ8") if family_of(kind) == family]
        elif count <= GRAPH:
            kinds.append(f"{graph}_SQ8" if is_tight else graph)
    if not kinds:
        raise UserError(f"ivf_pq needs an even number of coordinates, got {width}. Try ivf_sq.")
    taken = {kind: predicted_bytes(kind, count, width) for kind in kinds}
    plans = [
        Plan(kind=kind, prefix=prefix) for kind in kinds if memory is None or taken[kind] <= memory
    ]
    if not plans:
        raise UserError(
            f"No index of {count:,} rows takes {memory:,} bytes or less; the smallest takes about "
            f"{min(taken.values()):,}. Give more --memory."
        )
    return plans


def family_of(kind: str) -> str:
    """Return ``ivf_sq`` of ``IVF1024,SQ8``."""
    name = re.sub(r"\d+(x4fs)?", "", kind).replace(",", "_").lower()
    return EXACT if name == "flat" else name


def bytes_of(text: str) -> int:
    """Return the bytes of ``2GB``, ``500MB`` or ``1e9``.

    Raises:
        UserError: It is no size.
    """
    found = re.fullmatch(r"\s*([0-9.e+]+)\s*([kmgt]?)i?b?\s*", text.lower())
    try:
        size = int(float(found[1]) * 1000 ** " kmgt".index(found[2] or " ")) if found else 0
    except ValueError:
        size = 0
    if size < 1:
        raise UserError(f"The memory {text!r} is no size. Write it as 2GB or 500MB.")
    return size


def num_lists(count: int) -> int:
    """Return 4 times the root of the rows as the nearest power of 2, as faiss's guide advises."""
    return max(1, min(2 ** round(math.log2(4 * math.sqrt(count))), count // 4 or 1))


def lists_of(kind: str) -> int:
    """Return the number of lists of an inverted file: 1024 of ``IVF1024,SQ8``."""
    return int(kind.partition(",")[0].removeprefix("IVF"))


def predicted_bytes(kind: str, count: int, width: int) -> int:
    """Return how many bytes an index takes, from its kind alone; within 2 % of the file's.

    Where hits are ranked again, the full vectors stay on the disk and are not counted: a query
    reads some of their rows.
    """
    first, _, code = kind.replace("_", ",").partition(",")
    if first in (EXACT, "Flat"):
        return count * width * 4
    row = 4 * width
    if code == "SQ8":
        row = width
    if first.startswith("HNSW"):
        above = 1 / (LINKS - 1)  # of the nodes of each level, so many are on the next
        return int(count * (row + 4 * (2 * LINKS + above * LINKS) + 12))
    lists, ids = lists_of(kind), 8 * count
    if code.startswith("PQ"):
        parts = int(code.removeprefix("PQ").removesuffix("x4fs"))
        padded = count + 16 * lists  # a list is a number of blocks of 32 codes
        return padded * parts // 2 + ids + 4 * width * (lists + 16)
    return count * row + ids + 4 * width * lists


def train(
    plan: Plan, rows: Matrix, centroids: Float[np.ndarray, "lists width"] | None
) -> faiss.Index:
    """Return an index that holds nothing yet, learnt from rows that a seed draws.

    Args:
        plan: Its kind.
        rows: Unit-length rows.
        centroids: Of the lists of an inverted file, see ``learn_lists``; None for other kinds.
    """
    index = faiss.index_factory(
        rows[:1].shape[1] if plan.prefix is None else plan.prefix,
        plan.kind,
        faiss.METRIC_INNER_PRODUCT,
    )
    if centroids is not None and plan.kind.startswith("IVF"):
        faiss.extract_index_ivf(index).quantizer.add(centroids)
    index.train(plan.cut(draw(rows, CODEBOOK_POINTS)))
    return index


def learn_lists(rows: Matrix, lists: int, prefix: int | None) -> Float[np.ndarray, "lists width"]:
    """Return the centroids that all inverted files over some rows share."""
    points = Plan(prefix=prefix).cut(draw(rows, POINTS_PER_LIST * lists))
    return kmeans(points, lists, iterations=ITERATIONS)


def fill(index: faiss.Index, plan: Plan, rows: Matrix) -> faiss.Index:
    """Add all rows to an index, after what it held has gone."""
    index.reset()
    for _, block in blocks(rows):
        index.add(plan.cut(block))
    return index


def draw(rows: Matrix, size: int, seed: int = 0) -> Float[np.ndarray, "drawn dim"]:
    """Return rows that the seed draws, in their order: from all of them, not the first."""
    drawn = np.random.default_rng(seed).choice(len(rows), min(size, len(rows)), replace=False)
    return np.ascontiguousarray(rows[np.sort(drawn)], np.float32)
