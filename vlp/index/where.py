"""Conditions on what is known of a sample, as ``width>=512`` or ``language=["en", "de"]``."""

import functools
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from vlp.errors import UserError, nearest
from vlp.index.metadata import FIELD, LARGEST

COMPARE = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
"""Arrow's name of each sign; ``~`` is a part of a text, whatever its case."""
FORM = re.compile(r"\s*(.+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
WHOLE = re.compile(r"[+-]?\d+")
OWN = ("key", "caption", "shard")
"""Columns that can be asked for; the fields of the metadata are those of other names."""
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Condition(NamedTuple):
    """A field, how it is compared, and with what."""

    name: str
    sign: str
    value: str


def parse(text: str) -> Condition:
    """Return a condition that is written as ``width>=512``, or with = != < <= > and ~ (contains).

    ``language=["en", "de"]``, a list in JSON, is met by any of it.

    Raises:
        UserError: It is not written so.
    """
    found = FORM.fullmatch(text)
    if not found:
        raise UserError(
            f"The condition {text!r} is none. Write a field, a sign (= != < <= > >= or ~ for "
            f'contains) and a value, as "width>=512".'
        )
    condition = Condition(*found.groups())
    if (
        condition.sign == "="
        and condition.value.startswith("[")
        and _listed(condition.value) is None
    ):
        raise UserError(
            f"The list in the condition {text!r} is none. Write it in JSON, as "
            f'language=["en", "de"]; a text that begins so, too, as name=["[draft"].'
        )
    return condition


def fields_of(table: pa.Table) -> list[str]:
    """Return the names that conditions on a table may have."""
    return [name.removeprefix(FIELD) for name in table.column_names if name.startswith(FIELD)]


def check_names(conditions: Iterable[Condition], tables: Iterable[pa.Table]) -> None:
    """Raise UserError for the first condition whose field is in none of the tables."""
    known = {*OWN, *(name for table in tables for name in fields_of(table))}
    for condition in conditions:
        if condition.name not in known:
            raise UserError(
                f"No sample of the index has a field {condition.name!r}. "
                f"{nearest(condition.name, known)}"
            )


def matching(table: pa.Table, conditions: Iterable[Condition]) -> Bool[np.ndarray, "rows"]:
    """Return which rows meet all conditions; a row without the field meets none on it."""
    found = np.ones(len(table), bool)
    for condition in conditions:
        name = condition.name if condition.name in OWN else f"{FIELD}{condition.name}"
        if name not in table.column_names:
            return np.zeros(len(table), bool)
        found &= _met(table[name], condition).fill_null(False).to_numpy()
    return found


def _met(column: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    met = [_compared(column, one) for one in _any_of(condition)]
    return functools.reduce(lambda one, other: pc.call_function("or", [one, other]), met)


def _any_of(condition: Condition) -> list[Condition]:
    """Return the conditions one of which must be met: more than one where ``=`` is of a list."""
    listed = _listed(condition.value) if condition.sign == "=" else None
    if not listed:
        return [condition]
    texts = [one if isinstance(one, str) else json.dumps(one) for one in listed]
    return [condition._replace(value=text) for text in texts]


def _listed(value: str) -> list[Any] | None:
    """Return a list that is written in JSON; None of what is no list."""
    try:
        listed = json.loads(value)
    except ValueError:
        return None
    return listed if isinstance(listed, list) else None


def _compared(column: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    value = _value(condition, column.type)
    if pa.types.is_floating(value.type):  # whole numbers above 2^53 are rounded
        column = column.cast(pa.float64(), safe=False)
    if condition.sign == "~":
        part = pc.MatchSubstringOptions(condition.value, ignore_case=True)
        return pc.call_function("match_substring", [column], part)
    return pc.call_function(COMPARE[condition.sign], [column, value])


def _value(condition: Condition, kind: pa.DataType) -> pa.Scalar:
    name, sign, text = condition
    if pa.types.is_string(kind):
        return pa.scalar(text)
    if sign == "~":
        raise UserError(f"{name} is no text: compare it with = != < <= > or >=, not with ~.")
    if pa.types.is_boolean(kind):
        if text.lower() not in TRUTH:
            raise UserError(f"{name} is true or false, got {text!r}.")
        return pa.scalar(TRUTH[text.lower()])
    try:
        if pa.types.is_integer(kind) and WHOLE.fullmatch(text) and abs(int(text)) <= LARGEST:
            return pa.scalar(int(text))
        return pa.scalar(float(text))
    except ValueError:
        raise UserError(f"{name} is a number, and {text!r} is none.") from None
