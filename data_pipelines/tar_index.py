"""Where each file of each sample lies in a tar: read from its headers once, then kept on disk.

The only file that reads tar headers. The index of ``a/000000.tar`` is beside it, in
``a/.index/000000.tar.parquet``, or in the cache where the folder is read-only.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.faults import Faults
from data_pipelines.index_files import index_folder, save_table
from data_pipelines.shard_cache import ensure, url_of
from vlp.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
CAPTION_EXTENSIONS = ("txt", "json", "cls", "npy")
ORIGIN = b"vlp_index"
FORM = "3"
"""Of the index; another form is not read."""
OPENINGS = 20
"""To open a shard that others' shards push out of the cache."""


class Member(NamedTuple):
    """Where one file of a sample lies inside its shard, in bytes."""

    offset: int
    size: int


class Header(NamedTuple):
    """What a tar says of one of its members."""

    name: str
    """With a last ``/`` for a folder."""
    data: int
    """Byte where the content begins."""
    size: int
    is_file: bool


class Entry(NamedTuple):
    """One sample of a shard, not yet read."""

    shard: Path
    key: str
    members: dict[str, Member]
    """By extension without the first dot, lower case: ``jpg``, ``txt``, ``json``."""

    def extension(self) -> str | None:
        """Return the extension of the image, or None where there is none."""
        return next((e for e in IMAGE_EXTENSIONS if e in self.members), None)


@dataclass(frozen=True)
class TarIndex:
    """The usable samples of one shard, in the order of the tar; a row for each of their files."""

    shard: Path
    keys: list[str]
    starts: np.ndarray
    """Number of the first file of each sample, and of all files."""
    extensions: list[str]
    """Of each file, as ``jpg``."""
    offsets: np.ndarray
    sizes: np.ndarray
    faults: Faults

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Entry:
        files = range(self.starts[number], self.starts[number + 1])
        members = {
            self.extensions[i]: Member(int(self.offsets[i]), int(self.sizes[i])) for i in files
        }
        return Entry(self.shard, self.keys[number], members)

    def __iter__(self) -> Iterator[Entry]:
        return (self[number] for number in range(len(self)))


def open_index(shard: Path) -> TarIndex:
    """Return the index of a shard, made and written where there is none that is valid.

    Raises:
        UserError: The shard is elsewhere and cannot be fetched, or may not be read.
    """
    path = index_folder(shard) / f"{shard.name}.parquet"
    found = _load(path, shard)
    if found is None:
        try:
            found = _build(shard)
        except OSError as error:
            raise UserError(f"Cannot read the shard {shard}: {error.strerror}.") from None
        _save(found, path)
    return found


def open_shard(shard: Path) -> BinaryIO:
    """Return a shard, open for reading, fetched where it has a URL.

    Raises:
        UserError: It cannot be fetched, or a file that has no URL is gone.
        OSError: It may not be read.
    """
    for _ in range(OPENINGS):
        try:
            return open(shard, "rb", buffering=0)
        except FileNotFoundError:  # not fetched yet, or made room for others in the cache
            ensure(shard)
    raise UserError(
        f"The cache lost {shard} {OPENINGS} times before it was read. Set VLP_CACHE_GB to more."
    )


def origin(shard: Path) -> str:
    """Return what changes when a shard changes. One with a URL is taken never to change."""
    if url_of(shard):
        return FORM
    try:
        state = shard.stat()
    except OSError:
        raise UserError(f"The shard {shard} is gone. Put it back, or leave it out.") from None
    return f"{FORM} {state.st_size} {state.st_mtime_ns}"


def _build(shard: Path) -> TarIndex:
    faults = Faults()
    keys, starts, names, members = [], [0], [], []
    for key, found in _find_members(shard, faults).items():
        if not any(extension in found for extension in IMAGE_EXTENSIONS):
            faults.add("no image", shard.name, key)
        elif not any(extension in found for extension in CAPTION_EXTENSIONS):
            faults.add("no caption", shard.name, key)
        else:
            keys.append(key)
            names += found
            members += found.values()
            starts.append(len(names))
    spans = np.array(members, np.int64).reshape(-1, 2)
    return TarIndex(shard, keys, np.array(starts), names, spans[:, 0], spans[:, 1], faults)


def _load(path: Path, shard: Path) -> TarIndex | None:
    """Return a written index, or None where it is missing, damaged or of another shard."""
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        told = json.loads((table.schema.metadata or {})[ORIGIN])
        faults = Faults()
        faults.merge(told["faults"])
        # Arrow's own ``to_numpy`` would import pandas: 0.3 s of every command.
        numbers, offset, size = (
            np.from_dlpack(table[name].combine_chunks()) for name in ("sample", "offset", "size")
        )
        extensions = table["extension"].to_pylist()
        if told["origin"] != origin(shard):
            return None
        starts = np.searchsorted(numbers, np.arange(len(told["keys"]) + 1))
        return TarIndex(shard, told["keys"], starts, extensions, offset, size, faults)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError):
        return None


def _save(index: TarIndex, path: Path) -> None:
    table = pa.table(
        {
            "sample": np.repeat(np.arange(len(index)), np.diff(index.starts)),
            "extension": pa.array(index.extensions, pa.string()).dictionary_encode(),
            "offset": index.offsets,
            "size": index.sizes,
        }
    )
    told = {"origin": origin(index.shard), "keys": index.keys, "faults": index.faults.as_dict()}
    save_table(table.replace_schema_metadata({ORIGIN: json.dumps(told)}), path)


def _find_members(shard: Path, faults: Faults) -> dict[str, dict[str, Member]]:
    """Return by key, then by extension, where the files of a shard lie; the first of equals."""
    found: dict[str, dict[str, Member]] = {}
    repeated: set[str] = set()
    with open_shard(shard) as file:
        for header in _headers(file, shard, faults):
            # What is no UTF-8 is spelled out: a key goes into JSON and Parquet.
            path = header.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            folder, _, name = path.removeprefix("./").rpartition("/")
            stem, _, extension = name.partition(".")
            if not stem:  # a folder; or `._a.jpg` and its like, macOS's litter
                continue
            if not header.is_file:
                faults.add("file is a link or no file", shard.name, path)
                continue
            key = f"{folder}/{stem}" if folder else stem
            members = found.setdefault(key, {})
            if extension.lower() in members:
                repeated.add(key)
            else:
                members[extension.lower()] = Member(header.data, header.size)
    for key in sorted(repeated):
        faults.add("key stands twice", shard.name, key)
    return found


def _headers(file: BinaryIO, shard: Path, faults: Faults) -> Iterator[Header]:
    """Yield the headers whose data is all there; what is no tar, or no whole one, is counted."""
    length, offset = file.seek(0, os.SEEK_END), 0
    try:
        while True:
            block = os.pread(file.fileno(), tarfile.BLOCKSIZE, offset)
            header, end = _plain_header(block, offset) or _any_header(file, offset)
            if header is None:
                # tarfile takes a damaged header for the end; a real end is a block of zeros.
                if block != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no header and no end at byte {offset}")
                return
            if header.size < 0 or header.data + header.size > length:
                raise tarfile.ReadError("unexpected end of data")
            yield header
            offset = end
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        file.seek(0)
        is_gzip = file.read(2) == b"\x1f\x8b"
        reason = "shard is compressed, not a plain tar" if is_gzip else "shard is no tar file"
        faults.add("shard is cut off or damaged" if offset else reason, shard.name, str(error))


def _plain_header(block: bytes, offset: int) -> tuple[Header, int] | None:
    """Return the header of a plain file and where the next one is; None for any other block.

    Nearly all headers of a shard are of this kind (POSIX.1-1988, "ustar"), and ``tarfile`` takes
    ten times as long for them.
    """
    if block[257:263] != b"ustar\0" or block[156:157] not in (b"0", b"\0"):
        return None
    try:
        size, checksum = int(block[124:135], 8), int(block[148:154], 8)
    except ValueError:
        return None
    name, prefix = (part.split(b"\0", 1)[0] for part in (block[:100], block[345:500]))
    if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" ") or name.endswith(b"/"):
        return None
    path = b"/".join((prefix, name)) if prefix else name
    data = offset + tarfile.BLOCKSIZE
    end = data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return Header(path.decode(errors="surrogateescape"), data, size, is_file=True), end


def _any_header(file: BinaryIO, offset: int) -> tuple[Header | None, int]:
    """Return the header at a place and where the next one is; None at the end."""
    file.seek(offset)
    tar: Any = tarfile.TarFile(fileobj=file)
    info = tar.firstmember
    if info is None:
        return None, offset
    name = f"{info.name}/" if info.isdir() else info.name
    return Header(name, info.offset_data, info.size, is_file=info.isreg()), tar.offset
