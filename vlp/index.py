"""Nearest neighbours over features: build, save, load, search. The one door to faiss.

An index folder holds ``index.faiss``, ``metadata.parquet`` (a row for each feature) and
``config.json``, which names the model that the features are of.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64

from vlp.console import show
from vlp.errors import UserError
from vlp.features import numbered
from vlp.output import output_folder, read_record
from vlp.types import Hit


@dataclass(frozen=True)
class Index:
    """Features that can be searched, and what each row is."""

    faiss_index: faiss.Index
    metadata: pa.Table
    """``key``, ``caption``, ``metadata`` (JSON), ``shard``, ``offset``, ``size`` of each row."""
    model: str
    """The model that made the features, as it was named to ``vlp embed``."""
    model_hash: str

    def neighbours(
        self, queries: Float[np.ndarray, "queries dim"], k: int
    ) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return the cosines and rows of the k nearest features, nearest first.

        ``k`` beyond the number of rows gives them all. Queries are unit-length rows.
        """
        k = min(k, self.faiss_index.ntotal)
        return self.faiss_index.search(np.ascontiguousarray(queries, np.float32), k)

    def hits(self, query: Float[np.ndarray, "dim"], k: int) -> list[Hit]:
        """Return the k best hits of one query, best first; equal scores in the order of rows."""
        scores, rows = self.neighbours(query[None], k)
        order = np.lexsort((rows[0], -scores[0]))
        return [self._hit(float(scores[0][i]), int(rows[0][i])) for i in order]

    def picture(self, hit: Hit) -> bytes:
        """Return the encoded picture of a hit, with one seek into its shard.

        Raises:
            UserError: The shard has moved since the features were made.
        """
        try:
            with open(hit.metadata["shard"], "rb") as file:
                file.seek(hit.metadata["offset"])
                return file.read(hit.metadata["size"])
        except OSError:
            raise UserError(
                f"The shard {hit.metadata['shard']} of {hit.key} is not there any more. Put it "
                f"back, or run `vlp embed` and `vlp index` on where the shards are now."
            ) from None

    def _hit(self, score: float, row: int) -> Hit:
        columns = self.metadata.slice(row, 1).to_pylist()[0]
        fields = json.loads(columns.pop("metadata") or "{}")
        return Hit(columns.pop("key"), score, {**columns, "fields": fields})


def build_index(features: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Build an exact index (inner product of unit-length rows) over image features.

    Raises:
        UserError: ``features`` is not what ``vlp embed`` writes, or ``out`` is another's.
    """
    record = read_record(features) if features.is_dir() else None
    if record is None or record["command"] != "embed":
        raise UserError(f"{features} holds no features. Give the folder that `vlp embed` wrote.")
    rows, metadata = read_features(features)
    config = {name: record["config"][name] for name in ("model", "model_hash")}
    config |= {"features": str(features), "kind": "exact"}
    with output_folder(out, "index", config, inputs=[features], overwrite=overwrite) as part:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        faiss.write_index(index, str(part / "index.faiss"))
        pq.write_table(metadata, part / "metadata.parquet")
    show(f"Indexed {len(rows)} features of {features} into {out}, exact.")
    return {"features": len(rows), "dim": int(rows.shape[1]), "out": str(out)}


def read_features(folder: Path) -> tuple[Float[np.ndarray, "rows dim"], pa.Table]:
    """Return the image features and metadata of a folder in clip-retrieval's layout.

    Raises:
        UserError: Files are missing, or features and metadata are not of the same length.
    """
    parts = numbered(folder / "image_emb", ".npy")
    tables = numbered(folder / "metadata", ".parquet")
    if not parts or not tables:
        raise UserError(f"{folder} lacks image_emb/*.npy or metadata/*.parquet.")
    rows = np.concatenate([np.load(path) for path in parts]).astype(np.float32)
    metadata = pa.concat_tables([pq.read_table(path) for path in tables])
    if len(rows) != len(metadata):
        raise UserError(f"{folder} has {len(rows)} features but {len(metadata)} rows of metadata.")
    return rows, metadata


def load_index(folder: Path) -> Index:
    """Return a saved index.

    Raises:
        UserError: The folder holds no index, or a damaged one.
    """
    record = read_record(folder) if folder.is_dir() else None
    if record is None or record["command"] != "index":
        raise UserError(f"{folder} holds no index. Give the folder that `vlp index` wrote.")
    try:
        index = faiss.read_index(str(folder / "index.faiss"))
        metadata = pq.read_table(folder / "metadata.parquet")
    except (RuntimeError, OSError, pa.ArrowInvalid) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"The index {folder} is damaged ({line}). Build it again.") from None
    return Index(index, metadata, record["config"]["model"], record["config"]["model_hash"])
