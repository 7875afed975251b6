"""What is known of shards and kept on disk: where its tables lie, and how one is written.

The tables of ``a/000000.tar`` are in ``a/.index``, or in the cache where that folder is read-only.
"""

import contextlib
import os
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.shard_cache import cache_folder, url_of

FOLDER = ".index"


def index_folder(shard: Path) -> Path:
    """Return the folder of a shard's index: beside it, or in the cache where that is read-only."""
    beside = shard.parent / FOLDER
    if url_of(shard) or _is_writable(beside if beside.exists() else shard.parent):
        return beside
    return cache_folder() / FOLDER / beside.absolute().relative_to("/")


def save_table(table: pa.Table, path: Path) -> None:
    """Write a table for the next time; where nothing can be written, do without.

    Each writer has a temporary name of its own: whoever reads meanwhile sees one whole table.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, part, write_page_checksum=True)
        part.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def _is_writable(folder: Path) -> bool:
    """Return whether a folder may be written to; root may, but respects one that nobody may."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)
