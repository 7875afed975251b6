"""The uid of each sample of a shard: read from its ``.json`` once, then kept beside the index.

DataComp, whose lists of samples are lists of uids, gives every sample 32 hexadecimal digits.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.faults import SampleFault
from data_pipelines.index_files import index_folder, save_table
from data_pipelines.shards import read_members
from data_pipelines.tar_index import Entry, open_index, origin

UID = np.dtype("u8,u8")
"""The first and the last 16 digits, as in DataComp's lists."""
DIGITS = re.compile("[0-9a-fA-F]{32}")
NONE = "0" * 32
ORIGIN = b"vlp_uids"


def open_uids(shard: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the uid of each usable sample of a shard, and whether it has one.

    It is ``uid`` of its ``.json``, else its key where that has the form of one.

    Raises:
        UserError: The shard cannot be fetched or read.
    """
    path = index_folder(shard) / f"{shard.name}.uids.parquet"
    told = origin(shard).encode()
    with contextlib.suppress(OSError, pa.ArrowException, KeyError):
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        if (table.schema.metadata or {}).get(ORIGIN) == told:
            return _pairs(table["high"], table["low"]), table["has_uid"].to_numpy()
    found = [_uid(entry) for entry in open_index(shard)]
    pairs, has_uid = uid_pairs(found), np.array([bool(uid) for uid in found], bool)
    table = pa.table({"high": pairs["f0"], "low": pairs["f1"], "has_uid": has_uid})
    save_table(table.replace_schema_metadata({ORIGIN: told}), path)
    return pairs, has_uid


def uid_pairs(uids: Sequence[str]) -> np.ndarray:
    """Return uids of 32 hexadecimal digits as pairs of numbers; "" is 0.

    Raises:
        ValueError: One is something else.
    """
    data = bytes.fromhex("".join([uid or NONE for uid in uids]))
    # fromhex takes white space for nothing.
    if any(len(uid) not in (0, len(NONE)) for uid in uids) or len(data) != 16 * len(uids):
        raise ValueError("a uid has 32 hexadecimal digits")
    halves = np.frombuffer(data, ">u8").reshape(-1, 2)
    pairs = np.empty(len(uids), UID)
    pairs["f0"], pairs["f1"] = halves[:, 0], halves[:, 1]
    return pairs


def sorted_pairs(pairs: np.ndarray) -> np.ndarray:
    """Return uids in their order; ``np.sort`` would compare pairs one by one."""
    return pairs[np.lexsort((pairs["f1"], pairs["f0"]))]


def _pairs(high: Any, low: Any) -> np.ndarray:
    pairs = np.empty(len(high), UID)
    pairs["f0"], pairs["f1"] = high.to_numpy(), low.to_numpy()
    return pairs


def _uid(entry: Entry) -> str:
    """Return the uid of a sample, or "" where it has none."""
    told = entry.key
    with contextlib.suppress(SampleFault, ValueError, RecursionError, AttributeError):
        metadata = json.loads(read_members(entry, ("json",)).get("json", b"{}"))
        told = str(metadata.get("uid", told))
    return told if DIGITS.fullmatch(told) else ""
