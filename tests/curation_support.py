"""What tests of curation share: columns built from lists, samples, and a whole run."""

import io
import random

import numpy as np
import pyarrow as pa
from PIL import Image

from data_pipelines.curation.columns import Column, Columns
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.shards import open_shards, write_shards
from vlp.sample import Sample


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


def plain(width=300, height=300, colour="red"):
    """Return a PNG of one colour."""
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "PNG")
    return data.getvalue()


def sample(key, text="a red square", image=None, **metadata):
    """Return a sample with a picture of one colour unless another is given."""
    return Sample(key, plain() if image is None else image, text, metadata)


def many(count=40):
    """Return samples of few sizes and captions, so that there are duplicates of every kind."""
    rng = random.Random(0)
    sides = [20 + rng.randint(0, 3) for _ in range(count)]
    captions = [" ".join(["word"] * rng.randint(1, 5)) for _ in range(count)]
    return [
        sample(str(n), text, plain(side, side))
        for n, (text, side) in enumerate(zip(captions, sides, strict=True))
    ]


def filtered(folder, samples, *keep, per_shard=10, out="clean", **options):
    """Return the keys that `vlp filter` keeps, sorted, and its report."""
    raw = folder / f"raw{per_shard}"
    if not raw.exists():
        write_shards(samples, raw, samples_per_shard=per_shard)
    options = {"engine": Engine(kind="inline"), **options}
    report = filter_shards(str(raw), folder / out, keep=keep, **options)
    return sorted(one.key for one in open_shards(folder / out)), report
