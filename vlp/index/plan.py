"""What an index is made of, and how far each search goes: faiss's kinds behind one name."""

import errno
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Bool, Float, Int64

from vlp.index.exact import selector

EXACT = "exact"
LINKS = 32
"""Neighbours of a node of a graph; faiss's name for it is HNSW32, and on the ground twice as many
(Malkov and Yashunin 2018)."""
K = 10
"""Hits that recall is measured at."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A kind of index and what it was tuned to."""

    kind: str = EXACT
    """``exact``, or faiss's name of it, such as ``IVF1024,SQ8`` or ``HNSW32``."""
    effort: int = 0
    """Lists that a query looks into (nprobe), or nodes that it keeps in view (efSearch)."""
    refine: int = 1
    """Candidates for each hit, ranked again by their full vectors; 1 where cosines are exact."""
    prefix: int | None = None
    """Coordinates that the index holds (Kusupati et al. 2022); None: all. The rest re-ranks."""

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared."""
        return self.kind == EXACT

    @property
    def reranks(self) -> bool:
        """Whether the cosines that the kind gives are not those of the full vectors."""
        return self.prefix is not None or "Q" in self.kind

    @property
    def compared(self) -> int:
        """Vectors that a walk through a graph compares, about; an inverted file skips others."""
        return self.effort * LINKS if self.kind.startswith("HNSW") else 0

    def cut(self, rows: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows length"]:
        """Return what the index holds of vectors, or sees of queries: unit-length rows."""
        if self.prefix is None:
            return np.ascontiguousarray(rows, np.float32)
        short = np.array(rows[:, : self.prefix], np.float32, order="C")
        faiss.normalize_L2(short)
        return short

    def reaching(self, k: int, share: float) -> "Plan":
        """Return the plan with the effort that its recall takes where more, or less, is asked for.

        Effort was tuned for K of all rows. Where a share of them may be found, it meets as many of
        these; the more hits, the further out they lie, and the root of their number does.
        """
        return replace(self, effort=math.ceil(self.effort * math.sqrt(max(1, k / K)) / share))

    def ask(
        self,
        index: faiss.Index,
        queries: Float[np.ndarray, "queries length"],
        k: int,
        allowed: Bool[np.ndarray, "rows"] | None = None,
    ) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what faiss finds; the row is -1 where it found fewer."""
        options: dict[str, Any] = {} if allowed is None else {"sel": selector(allowed)}
        if self.kind == "Flat":
            parameters = faiss.SearchParameters(**options)
        elif self.kind.startswith("HNSW"):
            parameters = faiss.SearchParametersHNSW(  # pyright: ignore[reportAttributeAccessIssue]
                efSearch=max(self.effort, k), **options
            )
        else:
            options["nprobe"] = self.effort
            parameters = faiss.SearchParametersIVF(**options)
        return index.search(queries, k, params=parameters)


def save_quick(index: faiss.Index, path: Path) -> None:
    """Write an index into a file.

    Raises:
        OSError: There is no room for it.
    """
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # faiss's for whatever the disk says
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def open_quick(path: Path) -> faiss.Index:
    """Return an index of a file, mapped into memory.

    Raises:
        RuntimeError: It is no index, or damaged.
    """
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
