"""An index on the disk: segments that never change, and one small file that says which count.

``state.json`` names the segments, the list of deleted rows, and the model. Whoever changes an index
writes new files beside the old ones and replaces ``state.json`` last: who is killed on the way
leaves the index as it was.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int64

from vlp.errors import UserError, first_line
from vlp.index.metadata import read_rows
from vlp.index.segment import Segment, damaged, open_segment
from vlp.index.where import check_names, matching, parse
from vlp.manifest import flush
from vlp.output import write_json
from vlp.types import Hit

STATE = "state.json"
SEGMENTS = "segments"
BACKGROUND = 4096
"""Vectors that a score is compared with: a percentile is known to 100 / 4096 points."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Which files an index is made of, and which model its features are of."""

    model: str
    """As it was named to ``vlp embed``."""
    model_hash: str
    dim: int
    generation: int = 0
    """Changes so far."""
    next_id: int = 0
    """Number of the next row that is added; no number is given twice."""
    segments: tuple[str, ...] = ()
    deleted: str | None = None
    """File of the numbers of deleted rows."""
    source: str = ""
    """Identity of the features that it was built of."""


@dataclass(frozen=True, eq=False)
class Index:
    """Features that can be searched, and what each row is. Safe to use from several threads.

    A row is a place in the segments, one after the other, deleted ones counted; the number of a
    sample in its metadata (``id``) stays when rows move.
    """

    folder: Path
    state: State
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return int(self.alive.sum())

    @property
    def model(self) -> str:
        """The model that made the features, as it was named to ``vlp embed``."""
        return self.state.model

    @property
    def model_hash(self) -> str:
        """Hash of that model's weights."""
        return self.state.model_hash

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return self.state.dim

    @cached_property
    def starts(self) -> Int64[np.ndarray, "ends"]:
        """First row of each segment, and the number of all rows at last."""
        return np.cumsum([0, *map(len, self.segments)])

    def neighbours(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        allowed: Bool[np.ndarray, "rows"] | None = None,
    ) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return the cosines and rows of the k nearest features, nearest first.

        ``k`` beyond the number of rows gives them all; where fewer are allowed or found, the row
        is -1. Equal cosines come in the order of the rows.

        Args:
            queries: Unit-length rows.
            k: At least 1.
            allowed: Rows that may be found; None for all.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        cosines, rows = [], []
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            some = None if allowed is None else allowed[start : start + len(segment)]
            count = min(k, len(segment))
            score, row = segment.search(queries, count, some)
            if (row < 0).any():  # few of the rows that were looked at may be found, or k is large
                score, row = segment.compare(queries, count, some)
            cosines.append(score)
            rows.append(np.where(row < 0, -1, row + start))
        if len(rows) == 1:
            return cosines[0], rows[0]  # which is in order
        cosine, found = np.concatenate(cosines, axis=1), np.concatenate(rows, axis=1)
        order = np.lexsort((found, -cosine), axis=1)[:, :k]  # [queries, k]
        return np.take_along_axis(cosine, order, 1), np.take_along_axis(found, order, 1)

    def hits(self, query: Float[np.ndarray, "dim"], k: int) -> list[Hit]:
        """Return the k best hits of one query, best first; equal scores in the order of rows."""
        scores, rows = self.neighbours(query[None], k)
        is_found = rows[0] >= 0
        return self.hits_of(rows[0][is_found].tolist(), scores[0][is_found].tolist())

    def hit(self, row: int, score: float) -> Hit:
        """Return a row as a hit."""
        return self.hits_of([row], [score])[0]

    def hits_of(self, rows: Sequence[int], scores: Sequence[float]) -> list[Hit]:
        """Return rows as hits, in their order."""
        numbers = (np.searchsorted(self.starts, rows, side="right") - 1).tolist()
        said: dict[int, dict[str, Any]] = {}
        for number in set(numbers):
            own = [row for row, its in zip(rows, numbers, strict=True) if its == number]
            start = int(self.starts[number])
            found = read_rows(self.segments[number].metadata, (row - start for row in own))
            said.update(zip(own, found, strict=True))
        return [
            Hit(said[row]["key"], score, {k: v for k, v in said[row].items() if k != "key"})
            for row, score in zip(rows, scores, strict=True)
        ]

    def vectors(self, rows: Int64[np.ndarray, "some"]) -> Float[np.ndarray, "some dim"]:
        """Return the full vectors of some rows."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        found = np.empty((len(rows), self.dim), np.float32)
        for number in np.unique(numbers):
            places = numbers == number
            found[places] = self.segments[number].vectors[rows[places] - self.starts[number]]
        return found

    @cached_property
    def alive(self) -> Bool[np.ndarray, "rows"]:
        """Which rows are there."""
        return np.concatenate([segment.alive for segment in self.segments])

    def rows_of(self, key: str) -> list[int]:
        """Return the rows of a key, deleted ones left out.

        Raises:
            UserError: There is none.
        """
        found = []
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            places = np.flatnonzero(
                pc.call_function("equal", [segment.metadata["key"], key]).to_numpy()
            )
            found += [start + place for place in places.tolist() if self.alive[start + place]]
        if not found:
            raise UserError(f"The index {self.folder} holds no sample with the key {key!r}.")
        return found

    def matching(self, where: tuple[str, ...]) -> Bool[np.ndarray, "rows"]:
        """Return the rows that are there and meet all conditions, such as ``width>=512``.

        Raises:
            UserError: A condition cannot be read, or is on a field that no sample has.
        """
        conditions = [parse(text) for text in where]
        tables = [segment.metadata for segment in self.segments]
        check_names(conditions, tables)
        found, refused = [], []
        for table in tables:
            try:
                found.append(matching(table, conditions))
            except UserError as error:  # the field is of another type than in other segments
                found.append(np.zeros(len(table), bool))
                refused.append(error)
        if refused and not any(some.any() for some in found):
            raise refused[0]
        return self.alive & np.concatenate(found)

    @cached_property
    def background(self) -> Float[np.ndarray, "background dim"]:
        """Vectors drawn from the index once: what any score is compared with."""
        rows = np.flatnonzero(self.alive)
        size = min(BACKGROUND, len(rows))
        drawn = np.random.default_rng(0).choice(rows, size, replace=False)
        return self.vectors(np.sort(drawn))

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


def load_index(folder: Path) -> Index:
    """Return a saved index; its vectors and metadata stay on the disk until they are asked for.

    Raises:
        UserError: The folder holds no index, or a damaged one.
    """
    state = read_state(folder)
    try:
        deleted = read_deleted(folder, state)
        opened = tuple(open_segment(folder / SEGMENTS / name, deleted) for name in state.segments)
    except UserError:
        if read_state(folder).generation != state.generation:
            return load_index(folder)  # another process has changed it in between
        raise
    return Index(folder, state, opened)


def read_state(folder: Path) -> State:
    """Return what ``state.json`` says.

    Raises:
        UserError: The folder holds no index, or a damaged one.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        return State(**{**state, "segments": tuple(state["segments"])})
    except OSError:
        raise UserError(
            f"{folder} holds no index. Give the folder that `vlp index` wrote."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / STATE, first_line(error)) from None


def read_deleted(folder: Path, state: State) -> Int64[np.ndarray, "ids"]:
    """Return the numbers of the rows that are deleted, ascending."""
    if state.deleted is None:
        return np.empty(0, np.int64)
    try:
        return np.load(folder / state.deleted)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(folder / state.deleted, first_line(error)) from None


def write_state(folder: Path, state: State) -> State:
    """Let an index be what a state says, at once, and return it as its next generation."""
    following = replace(state, generation=state.generation + 1)
    write_json(folder / STATE, asdict(following))
    flush(folder)
    return following
