"""What one filter said of every sample, shard by shard, and exact summaries of it.

A decision walks columns as often as it likes, and only one shard's is in memory at a time. What it
carries from shard to shard are counts and other summaries whose order does not matter.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64, UInt8

from vlp.errors import UserError

DIGIT = 22
"""Bits of a number that are counted at a time: a table of 32 MB."""


@dataclass(frozen=True, eq=False)
class Column:
    """What one filter said of the samples of one shard."""

    values: pa.Array
    """A number, text, bytes or list for each row; null where the filter did not look or failed."""
    left: Bool[np.ndarray, "rows"]
    """Rows to decide about: earlier rules left them, and they were scored."""
    keys: Sequence[str]
    """Of all rows."""
    first: int
    """Place of the first row among those of all shards, to tell an earlier sample."""
    shard: str = ""
    """Path of the shard below the folder of all, as keep-lists name it."""

    @cached_property
    def is_scored(self) -> Bool[np.ndarray, "rows"]:
        """Rows that have a value: the pool of the filter."""
        return ~np.asarray(self.values.is_null())

    @cached_property
    def numbers(self) -> Float64[np.ndarray, "rows"]:
        """The values as numbers, NaN where there is none."""
        if pa.types.is_null(self.values.type):
            return np.full(len(self.values), np.nan)
        return self.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)

    @cached_property
    def bytes(self) -> UInt8[np.ndarray, "rows width"]:
        """The values as bytes, all of one width; zeros where there is none."""
        width = self.values.type.byte_width if not pa.types.is_null(self.values.type) else 1
        rows = np.zeros((len(self.values), width), np.uint8)
        scored = self.values.drop_null()
        if len(scored):
            data = np.frombuffer(b"".join(scored.to_pylist()), np.uint8)
            rows[self.is_scored] = data.reshape(-1, width)
        return rows

    @cached_property
    def entries(self) -> tuple[Int64[np.ndarray, "entries"], Int64[np.ndarray, "entries"]]:
        """The row and the value of every entry of values that are lists, in their order."""
        if not pa.types.is_list(self.values.type):  # nothing of the shard was scored
            return np.empty(0, np.int64), np.empty(0, np.int64)
        rows, found = self.values.value_parent_indices(), self.values.flatten()
        return np.asarray(rows.cast(pa.int64())), np.asarray(found.cast(pa.int64()))

    def places(self) -> np.ndarray:
        """Return the place of each row among those of all shards."""
        return self.first + np.arange(len(self.left))


@dataclass(frozen=True, eq=False)
class Columns:
    """A filter's columns in the order of the shards; each walk reads them anew."""

    load: Callable[[int], Column]
    num_shards: int

    def __iter__(self) -> Iterator[Column]:
        return map(self.load, range(self.num_shards))


def cutoff(
    parts: Iterable[Float64[np.ndarray, "_"]], share: float, *, below: bool = False
) -> float:
    """Return the lowest of the largest numbers of all parts that make up this share, exactly.

    It is found by counting, ``DIGIT`` bits of a number at a time: three walks and a table of counts
    do for any number of samples. Of 100 numbers and 0.3 it is the 30th largest; of none it is -inf.

    Args:
        parts: Numbers, none of them NaN; walked three times.
        share: In (0, 1].
        below: Return the largest number after that share; +inf where the share holds none.
    """
    rank, prefix = 0, 0
    for start, width in _digits():
        counts = np.zeros(1 << width, np.int64)
        for lot in _lots(parts):
            bits = _ordered_bits(lot)
            if start < 64:
                bits = bits[bits >> np.uint64(start) == prefix]
            digits = (bits >> np.uint64(start - width)) & np.uint64((1 << width) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << width)
        from_top = np.cumsum(counts[::-1])  # [2 ** width]
        if start == 64:
            # 0.29 * 100 is 28.999999999999996, and means 29.
            held = int(share * from_top[-1] + 1e-6)
            if below and not held:
                return np.inf
            rank = held + 1 if below else max(1, held)
            if rank > from_top[-1]:
                return -np.inf
        place = int(np.searchsorted(from_top, rank))
        rank -= int(from_top[place] - counts[::-1][place])
        prefix = prefix << width | ((1 << width) - 1 - place)
    return _number_of(prefix)


def check_share(share: float, name: str) -> None:
    """Raise UserError unless a share is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise UserError(f"{name}={share} is no share. Give more than 0 and at most 1.")


def _lots(parts: Iterable[Float64[np.ndarray, "_"]]) -> Iterator[Float64[np.ndarray, "_"]]:
    """Yield the same numbers in lots as large as the table, which costs as much as one to add."""
    lot, held = [], 0
    for part in parts:
        lot.append(part)
        held += len(part)
        if held >= 1 << DIGIT:
            yield np.concatenate(lot)
            lot, held = [], 0
    if held:
        yield np.concatenate(lot)


def _digits() -> Iterator[tuple[int, int]]:
    """Yield (bits from here on, bits of them that are counted) for the digits of 64 bits."""
    for start in range(64, 0, -DIGIT):
        yield start, min(DIGIT, start)


def _ordered_bits(numbers: Float64[np.ndarray, "_"]) -> np.ndarray:
    """Return integers that stand in the same order as the numbers; -0.0 is 0.0."""
    bits = (numbers + 0.0).view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _number_of(ordered: int) -> float:
    bits = ordered ^ (1 << 63) if ordered >> 63 else ordered ^ ((1 << 64) - 1)
    return float(np.array([bits], np.uint64).view(np.float64)[0])
