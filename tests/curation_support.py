"""Columns of scores as filters decide about them, built from lists."""

import numpy as np
import pyarrow as pa

from data_pipelines.curation.columns import Column, Columns


def columns(*shards, left=None, keys=None):
    """Return the columns of shards whose values these are; ``left`` is a mask for each shard."""
    arrays = [pa.array(values) for values in shards]
    arrays = [_of_one_width(array) for array in arrays]
    firsts = np.cumsum([0, *map(len, arrays)])

    def load(n):
        is_left = np.ones(len(arrays[n]), bool) if left is None else np.array(left[n], bool)
        is_left &= ~np.asarray(arrays[n].is_null())
        first = int(firsts[n])
        own = keys[n] if keys else [str(first + row) for row in range(len(arrays[n]))]
        return Column(arrays[n], is_left, own, first)

    return Columns(load, len(arrays))


def kept(part, *shards, left=None, keys=None):
    """Return for each shard what a filter keeps of the rows that are left."""
    given = columns(*shards, left=left, keys=keys)
    return [
        (np.asarray(mask) * column.left).tolist()
        for column, mask in zip(given, part.keep(given), strict=True)
    ]


def _of_one_width(array):
    if not pa.types.is_binary(array.type):
        return array
    widths = {len(value) for value in array.to_pylist() if value is not None}
    return array.cast(pa.binary(widths.pop()))
