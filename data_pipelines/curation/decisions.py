"""What became of every sample and why, written down: one Parquet file for each shard."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.curation.decide import Decision
from data_pipelines.curation.rules import Rule
from data_pipelines.curation.scores import ScoredSet
from vlp.output import whole_file

FOLDER = "decisions"


def write_decisions(
    rules: Sequence[Rule], scored: ScoredSet, decision: Decision, folder: Path
) -> None:
    """Write ``decisions/<shard>.parquet``, beside ``scores`` and named as those are.

    A row is a sample: its ``key``, ``copies``, how often it is kept, ``first``, the rule that
    dropped it or failed on it, and ``failing``, all rules that alone would drop it, as far as it
    was scored.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    texts = pa.array([rule.text for rule in rules], pa.string())
    for n, keys in enumerate(scored.keys):
        first = decision.first[n].astype(np.int64)
        columns = {
            "key": pa.array(keys, pa.string()),
            "copies": pa.array(decision.copies[n]),
            "first": pa.DictionaryArray.from_arrays(pa.array(first, mask=first < 0), texts),
            "failing": _failing(decision.failing[n], texts),
        }
        path = folder / FOLDER / scored.path(n).relative_to(scored.folder)
        with whole_file(path) as file:
            pq.write_table(pa.table(columns), file, compression="zstd")


def _failing(bits: np.ndarray, texts: pa.Array) -> pa.Array:
    """Return the rules whose bits are set, as a list for each row."""
    is_set = bits[:, None] >> np.arange(len(texts), dtype=np.uint64) & np.uint64(1)
    ends = np.cumsum(np.append(0, is_set.sum(axis=1)))
    rules = pa.array(np.nonzero(is_set)[1], pa.int64())
    return pa.ListArray.from_arrays(
        pa.array(ends.astype(np.int32)), pa.DictionaryArray.from_arrays(rules, texts)
    )
