"""Features on disk: mapped into memory, and found by the key and caption of their sample.

A folder holds ``img_emb/*.npy`` and ``text_emb/*.npy``, ``[rows, dim]`` in parts by number, and
``metadata/*.parquet`` with a row for each, as `vlp embed` writes and clip-retrieval reads; of its
own rows, ``image_path`` is the key.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, UInt64

from vlp.errors import UserError, first_line
from vlp.output import read_record

KINDS = ("image", "text")
FOLDERS = {"image": ("img_emb", "image_emb"), "text": ("text_emb",)}
"""By what they are of, where features lie; ``image_emb`` is what `vlp embed` wrote before."""
KEYS = ("key", "image_path")
"""Columns of a sample's key: ours, then clip-retrieval's."""
COLUMNS = ("key", "caption", "metadata", "shard", "offset", "size")
PROBED = 256
"""Rows, evenly spread, whose numbers are part of a folder's identity."""


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Image and text features of samples; only rows that are asked for are read from the disk.

    What is held in memory is 24 bytes a row: hashes of its key and its caption, and its number.
    """

    folder: Path
    image: list[Float[np.ndarray, "_ dim"]]
    text: list[Float[np.ndarray, "_ dim"]]
    keys: UInt64[np.ndarray, "rows"]
    """Hashes of the keys, ascending."""
    captions: UInt64[np.ndarray, "rows"]
    """Hash of the caption beside each key; ascending where keys are equal."""
    rows: np.ndarray
    """Row of each key."""

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple:
        # To a spawned worker goes the name of the folder, not what is in it.
        return open_features, (self.folder,)

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return self.image[0].shape[1]

    @property
    def scale(self) -> float | None:
        """Logit scale of the model that the features are of, where `vlp embed` wrote it down."""
        return self._config.get("scale")

    def has(self, keys: Sequence[str]) -> Bool[np.ndarray, "keys"]:
        """Return which keys have a row, whatever its caption."""
        wanted = _hashes(keys)
        at = np.searchsorted(self.keys, wanted).clip(max=len(self) - 1)
        return self.keys[at] == wanted

    def row(self, key: str, caption: str) -> int | None:
        """Return the row of a sample and its caption; None where there is none."""
        wanted, told = _hashes([key, caption])
        start, end = (int(np.searchsorted(self.keys, wanted, side)) for side in ("left", "right"))
        at = start + int(np.searchsorted(self.captions[start:end], told))
        return int(self.rows[at]) if at < end and self.captions[at] == told else None

    def pair(self, row: int) -> Float[np.ndarray, "2 dim"]:
        """Return the image and the text feature of a row, as they are stored."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        offset = row - int(self._ends[number]) + len(self.image[number])
        return np.stack([self.image[number][offset], self.text[number][offset]])

    @cached_property
    def identity(self) -> str:
        """16 hex digits of the samples, the model, and the numbers of ``PROBED`` rows."""
        digest = hashlib.sha256(f"{self._config.get('model_hash')} {self.image[0].dtype}".encode())
        for table in (self.keys, self.captions, self.rows):
            digest.update(np.ascontiguousarray(table).data)
        for row in np.linspace(0, len(self) - 1, PROBED).astype(int):
            digest.update(self.pair(int(row)).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.image])

    @cached_property
    def _config(self) -> dict[str, Any]:
        return _config_of(self.folder)


def open_features(folder: Path) -> StoredFeatures:
    """Return the features of a folder; takes about 3 seconds for a million rows.

    Raises:
        UserError: Files are missing or damaged, of different lengths, or a sample is there twice.
    """
    image, text = (_mapped(folder, kind) for kind in KINDS)
    keys, captions = _metadata_hashes(folder)
    lengths = [[len(part) for part in parts] for parts in (image, text)]
    widths = {part.shape[1] for part in (*image, *text)}
    if lengths[0] != lengths[1] or sum(lengths[0]) != len(keys) or not len(keys):
        raise UserError(
            f"{folder} has {sum(lengths[0])} image features, {sum(lengths[1])} text features and "
            f"{len(keys)} rows of metadata, part by part. They must be as many. Run `vlp embed` "
            f"again."
        )
    if len(widths) > 1:
        raise UserError(
            f"{folder} has features of {' and '.join(map(str, sorted(widths)))} numbers."
        )
    order = np.lexsort((captions, keys))
    keys, captions = keys[order], captions[order]
    twice = np.flatnonzero((keys[1:] == keys[:-1]) & (captions[1:] == captions[:-1]))
    if len(twice):
        raise UserError(
            f"{folder} has {len(twice)} rows of a key and a caption that another row has, such as "
            f"rows {order[twice[0]]} and {order[twice[0] + 1]}. Embed shards whose keys are unique."
        )
    return StoredFeatures(folder, image, text, keys, captions, order)


@dataclass(frozen=True, eq=False)
class Stacked:
    """Features in parts as one matrix; only rows that are asked for are read from the disk."""

    parts: list[Float[np.ndarray, "_ dim"]]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return self.parts[0].shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> Float[np.ndarray, "rows dim"]:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        numbers = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(rows), self.dim), self.parts[0].dtype)
        for number in np.unique(numbers):
            part, places = self.parts[number], numbers == number
            found[places] = part[rows[places] - int(self._ends[number]) + len(part)]
        return found

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])


def stack(folder: Path, kind: str) -> Stacked:
    """Return all ``image`` or all ``text`` features of a folder.

    Raises:
        UserError: There are none, or they are damaged.
    """
    return Stacked(_mapped(folder, kind))


def read_metadata(folder: Path) -> pa.Table:
    """Return the rows of a folder's metadata with our columns, whoever wrote them.

    Raises:
        UserError: A table cannot be read.
    """
    tables = []
    for path in numbered(folder / "metadata", ".parquet"):
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"Cannot read {path}: {first_line(error)}.") from None
        tables.append(table.select(COLUMNS) if "key" in table.column_names else _renamed(table))
    if not tables:
        raise UserError(f"{folder} lacks metadata/metadata_0.parquet. Run `vlp embed` again.")
    return pa.concat_tables([table.replace_schema_metadata() for table in tables])


def model_hash_of(folder: Path) -> str | None:
    """Return the hash of the model that made features, where `vlp embed` wrote it down."""
    return _config_of(folder).get("model_hash")


def numbered(folder: Path, suffix: str) -> list[Path]:
    """Return ``name_0.npy``, ``name_1.npy``, ... in the order of their numbers."""
    found = [path for path in folder.glob(f"*_*{suffix}")]
    return sorted(found, key=lambda path: (len(path.stem), path.stem))


def _mapped(folder: Path, kind: str) -> list[np.ndarray]:
    found = (numbered(folder / name, ".npy") for name in FOLDERS[kind])
    parts = []
    for path in next(filter(None, found), []):
        try:
            part = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"Cannot read the features {path}: {first_line(error)}.") from None
        if part.ndim != 2 or part.dtype.kind != "f":
            raise UserError(f"{path} holds {part.dtype} of {part.ndim} dimensions, no features.")
        parts.append(part)
    if not parts:
        name = FOLDERS[kind][0]
        raise UserError(
            f"{folder} lacks {name}/{name}_0.npy: it holds no features of {kind}s. Give a folder "
            f"that `vlp embed` wrote."
        )
    return parts


def _config_of(folder: Path) -> dict[str, Any]:
    return (read_record(folder) or {"config": {}})["config"]


def _metadata_hashes(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the keys and of the captions, row by row."""
    keys, captions = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for path in numbered(folder / "metadata", ".parquet"):
        try:
            file = pq.ParquetFile(path)
            name = next((name for name in KEYS if name in file.schema_arrow.names), KEYS[0])
            for batch in file.iter_batches(columns=[name, "caption"]):
                for column, parts in ((name, keys), ("caption", captions)):
                    parts.append(_hashes(str(text or "") for text in batch[column].to_pylist()))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(
                f"Cannot read the columns key and caption of {path}: {first_line(error)}."
            ) from None
    return np.concatenate(keys), np.concatenate(captions)


def _renamed(table: pa.Table) -> pa.Table:
    """Return clip-retrieval's metadata with our columns.

    ``image_path`` is a file, or of shards the key of a sample, whose picture cannot be found.
    """
    rows = table.to_pylist()
    paths = [str(row.pop("image_path", None) or "") for row in rows]
    captions = [row.pop("caption", None) or "" for row in rows]
    sizes = [os.path.getsize(path) if os.path.isfile(path) else None for path in paths]
    files = [None if size is None else path for path, size in zip(paths, sizes, strict=True)]
    said = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    columns = (paths, captions, said, files, [0] * len(rows), sizes)
    types = (*[pa.string()] * 4, pa.int64(), pa.int64())
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, types, strict=True)]
    return pa.table(arrays, COLUMNS)


def _hashes(texts: Iterable[str]) -> UInt64[np.ndarray, "texts"]:
    """Return 64 bits of each text; white space at its ends, which readers drop, is left out."""
    digests = (
        hashlib.blake2b(text.strip().encode(errors="surrogatepass"), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), np.uint64)
