"""What tests of curation share: columns built from lists, samples, and a whole run."""

import hashlib
import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Column, Columns
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.shards import open_shards, write_shards
from vlp.output import RECORD, write_json
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


def candidates(samples):
    """Return samples as filters look at them."""
    return [Candidate.of(one) for one in samples]


def scored(part, *samples):
    """Return what a filter says of samples."""
    return list(part.score(candidates(samples)))


def unit_rows(count, dim=8, seed=0):
    """Return random features of unit length."""
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def stored_features(folder, rows, captions=None, **config):
    """Write features as `vlp embed` does, the text's as the image's turned around."""
    for kind, own in (("image", rows), ("text", rows[:, ::-1])):
        (folder / f"{kind}_emb").mkdir(parents=True)
        np.save(folder / f"{kind}_emb" / f"{kind}_emb_0.npy", own)
    (folder / "metadata").mkdir()
    keys = [str(n) for n in range(len(rows))]
    table = pa.table({"key": keys, "caption": captions or ["a red square"] * len(rows)})
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")
    write_json(folder / RECORD, {"command": "embed", "config": config})
    return str(folder)


def red_model(path, shape=("n", 3, "high", "wide")):
    """Write an ONNX model: the mean of the first channel, and its negative."""
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    floats = onnx.TensorProto.FLOAT
    weights = np.array([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    axes = np.array([2, 3] if shape[1] == 3 else [1, 2])
    nodes = [
        onnx.helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),  # [n, 3]
        onnx.helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "red",
        [onnx.helper.make_tensor_value_info("pixels", floats, list(shape))],
        [onnx.helper.make_tensor_value_info("scores", floats, [shape[0], 2])],
        [
            onnx.numpy_helper.from_array(weights, "weights"),
            onnx.numpy_helper.from_array(axes, "axes"),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def contents(folder):
    """Return every file below a folder but the report's times, hashed."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".tar", ".npy") or path.name in ("manifest.json", "sizes.json")
    }
