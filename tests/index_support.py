"""Features that tests draw, as `vlp embed` lays them out."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.output import write_record


def unit_rows(count, dim=16, seed=0):
    """Return rows in all directions."""
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_features(folder, rows, *, first=0, texts=None, model_hash="hash", fields=None):
    """Write features whose keys are ``00000``, ``00001``, ... from the first."""
    for name, features in (("img_emb", rows), ("text_emb", texts)):
        if features is not None:
            (folder / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / name / f"{name}_0.npy", features)
    numbers = range(first, first + len(rows))
    fields = fields or (lambda n: {"width": n, "language": "en" if n % 2 else "de"})
    columns = {
        "key": [f"{n:05d}" for n in numbers],
        "caption": [f"Picture {n}" for n in numbers],
        "metadata": [json.dumps(fields(n)) for n in numbers],
        "shard": [f"/shards/{n // 10:05d}.tar" for n in numbers],
        "offset": pa.array([512] * len(rows), pa.int64()),
        "size": pa.array([9] * len(rows), pa.int64()),
    }
    (folder / "metadata").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "metadata" / "metadata_0.parquet")
    write_record(folder, "embed", {"model": "tiny", "model_hash": model_hash})
    return folder
