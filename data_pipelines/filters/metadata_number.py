"""Samples by a number in their metadata, such as another's score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter
from data_pipelines.curation.table_rows import Rows, Said
from data_pipelines.faults import SampleFault


@dataclass(frozen=True, kw_only=True)
class MetadataNumber(BoundedFilter):
    """A field of ``.json``, or a column of a table, as a number.

    Such as LAION's ``punsafe`` and ``pwatermark`` (``max=0.5``), an aesthetic score, or DataComp's
    ``clip_l14_similarity_score`` (``top=0.3``). A sample that has no number there is failed, not
    dropped, and outside the pool.
    """

    field: str
    """Name of the field; ``a.b`` is ``b`` inside ``a`` where no field has the whole name."""

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the number of each sample."""
        return [self._number(one) for one in candidates]

    def score_rows(self, rows: Rows) -> Said | None:
        """Return the number of each row, where a column of numbers has the field's name."""
        return rows.of_numbers(self.field)

    def _number(self, one: Candidate) -> float:
        value: Any = one.metadata
        for name in (self.field,) if self.field in value else self.field.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise SampleFault(f"no number in {self.field}") from None
