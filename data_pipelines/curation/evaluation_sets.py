"""What evaluation shards hold, so that training samples can be compared with it."""

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from data_pipelines.captions import caption_key
from data_pipelines.curation.candidates import hash64, open_candidates
from data_pipelines.curation.files import read_once
from data_pipelines.curation.pdq import BITS, QUALITY, pdq, pdq_identity
from data_pipelines.faults import SampleFault
from data_pipelines.index_files import index_folder, save_table
from data_pipelines.shards import open_shards
from data_pipelines.tar_index import open_index, origin
from vlp.image import ImageError

ORIGIN = b"vlp_pdq"


def set_identity(shards: str) -> str:
    """Return what changes when a shard of a set changes.

    Raises:
        UserError: There is no shard.
    """
    return " ".join(f"{shard.name} {origin(shard)}" for shard in open_shards(shards).shards)


@read_once
def picture_hashes(shards: str) -> UInt8[np.ndarray, "pictures 32"]:
    """Return the PDQ hashes of the pictures of a set, less those that are flat or damaged.

    They are made once and kept beside the shards, or in the cache where these cannot be written.
    """
    found = [_hashes_of(shard) for shard in open_shards(shards).shards]
    return np.concatenate(found)


@read_once
def caption_windows(shards: str, words: int) -> frozenset[int]:
    """Return 64 bits of each run of so many words of the captions of a set.

    Each line of a caption is a caption, as several of one picture are written.
    """
    found: set[int] = set()
    for shard in open_shards(shards).shards:
        for one in open_candidates(shard, range(len(open_index(shard)))):
            with contextlib.suppress(SampleFault):  # a picture without a caption cannot leak one
                for line in one.text.split("\n"):
                    found.update(windows(line, words))
    return frozenset(found)


def windows(text: str, words: int) -> list[int]:
    """Return 64 bits of each run of so many words of a text; of a shorter text none."""
    told = caption_key(text).split()
    return [hash64(" ".join(told[n : n + words])) for n in range(len(told) - words + 1)]


def _hashes_of(shard) -> UInt8[np.ndarray, "pictures 32"]:
    path = index_folder(shard) / f"{shard.name}.pdq.parquet"
    told = f"{pdq_identity()} {origin(shard)}".encode()
    with contextlib.suppress(OSError, pa.ArrowException, KeyError):
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        if (table.schema.metadata or {}).get(ORIGIN) == told:
            return _rows(table["hash"].to_pylist())
    hashes = []
    for one in open_candidates(shard, range(len(open_index(shard)))):
        with contextlib.suppress(SampleFault, ImageError):  # what is damaged matches nothing
            found = pdq(one.picture)
            if found.quality >= QUALITY:
                hashes.append(found.hash.tobytes())
    table = pa.table({"hash": pa.array(hashes, pa.binary(BITS // 8))})
    save_table(table.replace_schema_metadata({ORIGIN: told}), path)
    return _rows(hashes)


def _rows(hashes: list[bytes]) -> UInt8[np.ndarray, "pictures 32"]:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, BITS // 8)
