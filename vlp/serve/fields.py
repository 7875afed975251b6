"""Which fields of the metadata the page offers to filter by, and with what values."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlp.serve.messages import FieldAbout

MOST_FIELDS = 12
MOST_VALUES = 30
"""Distinct values of a field that are offered one by one; more numbers than these are a range."""
LONGEST = 60
"""Signs of a value that is offered."""
SIGNS = frozenset("=!<>~")
"""In the name of a field, they cannot be told from a condition's sign."""
SEEN = 20_000
"""Pictures that are looked at before the values of all are counted."""


def fields_about(columns: Iterable[tuple[str, pa.Array]]) -> list[FieldAbout]:
    """Return the fields that tell pictures apart: few values, each of several pictures, or numbers.

    Args:
        columns: Name of each field, and its values.
    """
    found = [about for name, values in columns if (about := _about(name, values))]
    return sorted(found, key=lambda field: (field.kind == "number", len(field.values)))[
        :MOST_FIELDS
    ]


def _about(name: str, values: pa.Array) -> FieldAbout | None:
    if SIGNS & set(name) or pa.types.is_null(values.type):
        return None
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if len(values[:SEEN].unique()) <= MOST_VALUES:
        counted = _counts(values)
        is_short = all(len(str(one["value"])) <= LONGEST for one in counted)
        if 2 <= len(counted) <= MOST_VALUES and is_short:
            return FieldAbout(name=name, kind="choice", values=counted)
    if not is_number:
        return None
    ends = pc.call_function("min_max", [values]).as_py()
    if ends["min"] is None or ends["min"] == ends["max"]:
        return None
    return FieldAbout(name=name, kind="number", least=ends["min"], most=ends["max"])


def _counts(values: pa.Array) -> list[dict[str, Any]]:
    """Return each value and how many pictures have it: numbers in order, texts the common first."""
    counted = values.drop_null().value_counts().to_pylist()
    found = [{"value": one["values"], "count": one["counts"]} for one in counted]
    is_text = pa.types.is_string(values.type)
    return sorted(found, key=lambda one: -one["count"] if is_text else one["value"])
