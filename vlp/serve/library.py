"""The pictures of an index as the service gives them: by their number, found, or in an order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int64

from vlp.console import one_line
from vlp.errors import UserError, nearest
from vlp.index import Index
from vlp.index.metadata import FIELD, common
from vlp.query import Query, combine, find_encoded
from vlp.serve.limits import Refused
from vlp.serve.messages import FoundPicture, SearchRequest
from vlp.types import Hit

SORTED = 1000
"""Best hits of a query that are sorted by a field."""
OWN = ("key", "caption")
"""Columns that pictures can be sorted by beside the fields of their metadata."""


class Library:
    """Pictures of an index; a number is a picture's for good, also when others are deleted."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._ids = np.concatenate([segment.ids for segment in index.segments])
        self._rows_by_id = np.argsort(self._ids)

    def __len__(self) -> int:
        return len(self.index)

    def hit(self, number: int) -> Hit:
        """Return a picture as a hit of no query.

        Raises:
            Refused: There is none of this number.
        """
        return self.index.hit(self._row(number), 0.0)

    def found(self, number: int) -> FoundPicture:
        """Return what is known of a picture.

        Raises:
            Refused: There is none of this number.
        """
        return _found(self.hit(number))

    def encoded(self, number: int) -> bytes:
        """Return a picture as it lies in its shard.

        Raises:
            Refused: There is none of this number, or it cannot be read.
        """
        hit = self.hit(number)
        try:
            return self.index.picture(hit)
        except UserError as error:  # where it lies is nobody's business but who serves it
            shard = hit.metadata["shard"] or ""
            reason = str(error).replace(shard, Path(shard).name) if shard else str(error)
            raise Refused(404, reason) from None

    def feature(self, key: str) -> Float[np.ndarray, "dim"]:
        """Return the feature of the picture with a key.

        Raises:
            Refused: There is none.
        """
        self._check_keys([key])
        return self.index.vectors(np.array(self.index.rows_of(key)[:1]))[0]

    def find(
        self,
        request: SearchRequest,
        texts: Float[np.ndarray, "texts dim"],
        images: Float[np.ndarray, "images dim"],
    ) -> tuple[list[FoundPicture], bool]:
        """Return pictures, best first or sorted, and whether there are more.

        Args:
            request: Its texts, images and vectors are known by their features.
            texts: Features of its texts, in their order.
            images: Of its images and vectors, in their order.
        """
        self._check_keys([term.key for term in request.terms if term.key])
        if not request.terms:
            return self._browse(request)
        end = request.offset + request.k
        query = Query(
            texts=tuple((term.text, term.weight) for term in request.terms if term.text),
            images=tuple((b"", term.weight) for term in request.terms if term.image or term.vector),
            keys=tuple((term.key, term.weight) for term in request.terms if term.key),
            where=tuple(request.where),
            k=SORTED if request.sort else request.k + 1,  # one more tells whether there are more
            offset=0 if request.sort else request.offset,
            min_percentile=request.min_percentile,
            fold=request.fold,
        )
        hits = find_encoded(self.index, combine(self.index, query, texts, images), query)
        if not request.sort:
            return [_found(hit) for hit in hits[: request.k]], len(hits) > request.k
        rows = np.array([self._row(hit.metadata["id"]) for hit in hits], np.int64)
        order = self._order(rows, request.sort)
        return [_found(hits[place]) for place in order[request.offset : end]], end < len(hits)

    def _browse(self, request: SearchRequest) -> tuple[list[FoundPicture], bool]:
        rows = np.flatnonzero(self.index.matching(tuple(request.where)))
        if request.sort:
            rows = rows[self._order(rows, request.sort)]
        end = request.offset + request.k
        some = rows[request.offset : end].tolist()
        hits = self.index.hits_of(some, [0.0] * len(some))
        return [_found(hit) for hit in hits], end < len(rows)

    def _row(self, number: int) -> int:
        place = int(np.searchsorted(self._ids, number, sorter=self._rows_by_id))
        if place < len(self._ids):
            row = int(self._rows_by_id[place])
            if self._ids[row] == number and self.index.alive[row]:
                return row
        raise Refused(404, f"The index has no picture {number}.")

    def _check_keys(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self.index.rows_of(key)
            except UserError:
                raise Refused(422, f"There is no picture with the key {one_line(key)!r}.") from None

    def _order(self, rows: Int64[np.ndarray, "rows"], sort: str) -> Int64[np.ndarray, "rows"]:
        """Return the places of rows in the order of a field; those without it come last.

        Raises:
            UserError: There is no such field.
        """
        name = sort.removeprefix("-")
        column = self.column(name)
        if column is None:
            raise UserError(f"There is no field {one_line(name)!r}. {nearest(name, self.fields())}")
        way = "descending" if sort.startswith("-") else "ascending"
        values = pa.table({"values": column.take(pa.array(rows))})
        options = pc.SortOptions(sort_keys=[("values", way)])  # what is null comes last
        return pc.call_function("sort_indices", [values], options).to_numpy().astype(np.int64)

    def fields(self) -> list[str]:
        """Return the names of the fields of the metadata, and of what else can be sorted by."""
        columns = (
            name for segment in self.index.segments for name in segment.metadata.schema.names
        )
        found = (name.removeprefix(FIELD) for name in columns if name.startswith(FIELD))
        return list(dict.fromkeys([*OWN, *found]))

    def columns(self) -> Iterator[tuple[str, pa.Array]]:
        """Yield the fields of the metadata with their values, of pictures that are there."""
        alive = pa.array(self.index.alive)
        for name in self.fields():
            column = None if name in OWN else self.column(name)
            if column is not None:
                yield name, column.filter(alive)

    def column(self, name: str) -> pa.Array | None:
        """Return the values of a field, of each row; None where no picture has it."""
        columns, own = [], name if name in OWN else FIELD + name
        for segment in self.index.segments:
            is_there = own in segment.metadata.schema.names
            column = segment.metadata[own].combine_chunks() if is_there else pa.nulls(len(segment))
            columns.append(column)
        kinds = {column.type for column in columns} - {pa.null()}
        if not kinds:
            return None
        return pa.concat_arrays([column.cast(common(kinds), safe=False) for column in columns])


def _found(hit: Hit) -> FoundPicture:
    is_asked = hit.percentile is not None
    return FoundPicture(
        id=hit.metadata["id"],
        key=hit.key,
        caption=hit.metadata["caption"] or "",
        score=hit.score if is_asked else None,
        percentile=hit.percentile,
        folded=list(hit.folded),
        metadata=hit.metadata["fields"],
    )
