"""Which fields of the metadata the page offers to filter by, and with what values."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from vlp.serve.messages import FieldAbout

MOST_FIELDS = 12
MOST_VALUES = 30
"""Distinct values of a field that are offered one by one; more numbers than these are a range."""
LONGEST = 60
"""Signs of a value that is offered."""


def fields_of(rows: Iterable[dict[str, Any]]) -> list[FieldAbout]:
    """Return the fields that tell pictures apart: few values, each of several pictures, or numbers.

    Args:
        rows: The metadata of pictures.
    """
    counts: dict[str, Counter] = {}
    for row in rows:
        for name, value in row.items():
            counted = counts.setdefault(name, Counter())
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str | int | float | bool):
                    counted[one] += 1
    found = [about for name, values in counts.items() if (about := _about(name, values))]
    return sorted(found, key=lambda field: (field.kind == "number", len(field.values)))[
        :MOST_FIELDS
    ]


def _about(name: str, counted: Counter) -> FieldAbout | None:
    if len(counted) < 2:
        return None
    if len(counted) <= MOST_VALUES and all(len(str(value)) <= LONGEST for value in counted):
        values = [{"value": value, "count": count} for value, count in counted.most_common()]
        return FieldAbout(name=name, kind="choice", values=values)
    if all(isinstance(value, int | float) for value in counted):
        return FieldAbout(name=name, kind="number", least=min(counted), most=max(counted))
    return None
