"""A segment: rows of an index that were written together and are never changed.

A folder with ``vectors.npy``, ``metadata.arrow``, ``plan.json``, ``quick.faiss`` where the search
is not exact, and ``manifest.json``: sizes and hashes of the others.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int64

from vlp.errors import UserError, first_line
from vlp.index.candidates import fill
from vlp.index.exact import Matrix, blocks, neighbours
from vlp.index.metadata import open_metadata, write_metadata
from vlp.index.plan import Plan, open_quick, save_quick
from vlp.manifest import MANIFEST, damage, flush, seal
from vlp.output import write_json

VECTORS, METADATA, PLAN, QUICK = "vectors.npy", "metadata.arrow", "plan.json", "quick.faiss"
FEW = 0.1
"""Where fewer than this share of the rows may be found, each of them is compared: an index that
must skip most of what it meets finds too few of the right ones."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows that can be searched; all is mapped into memory, and read as it is needed."""

    folder: Path
    vectors: Float[np.ndarray, "rows dim"]
    metadata: pa.Table
    plan: Plan
    quick: faiss.Index | None
    """None where each vector is compared."""
    deleted: Bool[np.ndarray, "rows"] | None
    """Rows that are there no more; None for none."""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def bytes(self) -> int:
        """What a search walks through; full vectors that only rank candidates are not counted."""
        is_exact = self.plan.is_exact
        return self.vectors.nbytes if is_exact else os.path.getsize(self.folder / QUICK)

    @cached_property
    def ids(self) -> Int64[np.ndarray, "rows"]:
        """Numbers of the rows, ascending."""
        return self.metadata["id"].to_numpy()

    @cached_property
    def alive(self) -> Bool[np.ndarray, "rows"]:
        """Which rows are there."""
        return np.ones(len(self), bool) if self.deleted is None else ~self.deleted

    def search(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        allowed: Bool[np.ndarray, "rows"] | None = None,
    ) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return the cosines and rows of the k nearest, nearest first; -1 where there are fewer.

        Args:
            queries: Unit-length rows.
            k: At most the number of rows.
            allowed: Rows that may be found.
        """
        left = self._left(allowed)
        share = 1.0 if left is None else float(left.mean())
        if self.quick is None or share < FEW:
            return self.compare(queries, k, allowed)
        plan = self.plan.reaching(k, share)
        if plan.compared > share * len(self):
            return self.compare(queries, k, allowed)
        wanted = min(len(self), k * plan.refine)
        cosines, rows = plan.ask(self.quick, plan.cut(queries), wanted, left)
        if self.plan.reranks:
            cosines = self._cosines(queries, rows)
        order = np.lexsort((rows, -cosines), axis=1)[:, :k]  # [queries, k]
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)

    def compare(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        allowed: Bool[np.ndarray, "rows"] | None = None,
    ) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what ``search`` would at a recall of 1: every vector is compared."""
        return neighbours(queries, self.vectors, k, allowed=self._left(allowed))

    def _left(self, allowed: Bool[np.ndarray, "rows"] | None) -> Bool[np.ndarray, "rows"] | None:
        """Return which rows may be found, less those that are deleted; None for all."""
        if self.deleted is None:
            return allowed
        return self.alive if allowed is None else allowed & self.alive

    def _cosines(
        self, queries: Float[np.ndarray, "queries dim"], rows: Int64[np.ndarray, "queries k"]
    ) -> Float[np.ndarray, "queries k"]:
        """Return the cosines of full vectors, of each query its own."""
        found = np.empty(rows.shape, np.float32)
        for place, own in enumerate(rows):
            # No product of matrices: BLAS wakes its other threads for so few rows.
            found[place] = np.einsum("kd,d->k", self.vectors[own], queries[place])
        found[rows < 0] = -np.inf
        return found


@contextmanager
def new_segment(folder: Path) -> Iterator[Path]:
    """Yield a folder that takes its name, sealed and on the disk, when the block ends well."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    seal(part)
    part.rename(folder)
    flush(folder.parent)


def write_rows(
    folder: Path, rows: Matrix, metadata: pa.Table, first_id: int
) -> Float[np.ndarray, "rows dim"]:
    """Write vectors, at unit length, and what they are, and return the vectors, mapped.

    One block is in memory at a time.

    Raises:
        UserError: A vector has numbers that are not finite, or no direction.
    """
    width = rows[:1].shape[1]
    shape = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), width)}
    with (folder / VECTORS).open("wb") as file:  # a full disk ends a process that writes to a map
        np.lib.format.write_array_header_1_0(file, shape)
        for start, block in blocks(rows):
            _check_finite(block, start, metadata)
            block = block.copy()  # it may be the caller's
            faiss.normalize_L2(block)  # fp16 has rounded them
            file.write(block.data)
    write_metadata(metadata, first_id, folder / METADATA)
    return np.load(folder / VECTORS, mmap_mode="r")


def _check_finite(block: Float[np.ndarray, "block dim"], start: int, metadata: pa.Table) -> None:
    is_bad = ~(np.isfinite(block).all(1) & block.any(1))
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        is_zero = not block[row].any()
        told = "is all zeros" if is_zero else "has numbers that are not finite, such as NaN"
        raise UserError(
            f"The feature of {metadata['key'][start + row]} (row {start + row}) {told}. Run "
            f"`vlp embed` again, with a model whose weights are finite."
        )


def write_plan(folder: Path, plan: Plan) -> None:
    """Write how a segment is searched."""
    write_json(folder / PLAN, asdict(plan))


def write_quick(
    folder: Path, plan: Plan, like: Path, vectors: Float[np.ndarray, "rows dim"]
) -> None:
    """Write an index of the vectors of a segment; what it knows is what another has learnt."""
    quick = fill(faiss.read_index(str(like / QUICK)), plan, vectors)
    save_quick(quick, folder / QUICK)


def open_segment(folder: Path, deleted: Int64[np.ndarray, "ids"]) -> Segment:
    """Return a segment.

    Args:
        folder: Of the segment.
        deleted: Numbers of rows that are there no more, of all segments.

    Raises:
        UserError: A file is missing, of another length than it was, or damaged.
    """
    try:
        check_sizes(folder)
        plan = Plan(**json.loads((folder / PLAN).read_text()))
        # Rows of a plain array are taken in half the time of a memmap's.
        vectors = np.load(folder / VECTORS, mmap_mode="r").view(np.ndarray)
        metadata = open_metadata(folder / METADATA)
        quick = None if plan.is_exact else open_quick(folder / QUICK)
    except (OSError, ValueError, TypeError, RuntimeError, pa.ArrowException) as error:
        raise damaged(folder, first_line(error)) from None
    lengths = {len(vectors), len(metadata), len(vectors) if quick is None else quick.ntotal}
    if len(lengths) > 1:
        raise damaged(folder, f"{len(vectors)} vectors and {len(metadata)} rows of metadata")
    gone = np.isin(metadata["id"].to_numpy(), deleted)
    return Segment(folder, vectors, metadata, plan, quick, gone if gone.any() else None)


def check_sizes(folder: Path) -> None:
    """Raise ValueError where a file is not as long as it was written: it costs no reading."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    for name, sealed in files.items():
        size = os.path.getsize(folder / name)
        if size != sealed["bytes"]:
            raise ValueError(f"{name} has {size:,} of {sealed['bytes']:,} bytes")


def check_hashes(folder: Path) -> None:
    """Raise UserError where a file is not as it was written; all of it is read."""
    if told := damage(folder):
        raise damaged(folder, told)


def damaged(path: Path, told: str) -> UserError:
    """Return the error that says which file or folder of an index is damaged, and how."""
    return UserError(
        f"The index is damaged: {path}: {told}. Build it again: `vlp index` with --overwrite."
    )
